// Critest runs the Kubernetes project's CRI conformance tool against a node of
// its own, with stand-ins for the tool's images from a registry on loopback, and
// then looks for what is left.
//
//	critest -critest PATH [-bin DIR] [-- the tool's own flags]
//
// The tool itself is not part of this repository. Its exit code is ours.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/testimage"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	tool := flag.String("critest", "", "path of the tool")
	bin := flag.String("bin", "bin", "directory of the built binaries")
	flag.Parse()
	err := run(ctx, *tool, *bin, flag.Args())
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, tool, bin string, arguments []string) (err error) {
	if _, err := os.Stat(tool); err != nil {
		return fmt.Errorf("find the tool, named by CRITEST= or -critest: %w", err)
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	slot, err := node.TakeSlot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slot.Release()) }()
	mirror, stop, err := serveImages(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	n, err := node.Start(ctx, node.Options{
		Bin: bin, Name: slot.Name, State: slot.State, Data: slot.Data, Subnet: slot.Subnet, Mirror: mirror,
	})
	if err != nil {
		return err
	}
	baseline, err := n.Census(ctx)
	if err != nil {
		return errors.Join(err, n.Remove(ctx))
	}
	// What libraries open at their first use, once, and keep.
	baseline["daemon fd"] = append(baseline["daemon fd"], "/", "/sys/fs/cgroup")
	cmd := exec.CommandContext(ctx, tool, append([]string{"-runtime-endpoint", "unix://" + n.Socket(), "-nri-socket", n.PluginSocket()}, arguments...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	ran := cmd.Run()
	after := context.WithoutCancel(ctx)
	reportLeaks(after, n, baseline)
	return errors.Join(ran, n.Remove(after))
}

// serveImages builds the tool's images and serves them.
func serveImages(ctx context.Context) (address string, stop func() error, err error) {
	dir, err := images.Dir()
	if err != nil {
		return "", nil, err
	}
	root, err := images.ModuleRoot()
	if err != nil {
		return "", nil, err
	}
	if err := images.Build(ctx, dir, root, images.Conformance(), func(testimage.Built) {}); err != nil {
		return "", nil, err
	}
	server, err := images.Registry(dir).Start("127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	return server.Addr, server.Close, nil
}

// reportLeaks prints what the tool's pods left: the tool removes its own pods,
// but not all of its images.
func reportLeaks(ctx context.Context, n *node.Node, baseline node.Census) {
	err := errors.Join(n.Empty(ctx), n.RemoveImages(ctx))
	leaks, leaksErr := n.AwaitClean(ctx, baseline, 10*time.Second)
	_, checkErr := n.Mica(ctx, "check")
	if err := errors.Join(err, leaksErr, checkErr); err != nil {
		fmt.Println("after the tool:", err)
	}
	for _, leak := range leaks {
		fmt.Println("left behind:", leak)
	}
}
