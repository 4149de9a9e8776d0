// Critest runs the Kubernetes project's CRI conformance tool against a separate node, with
// substitutes for the tool's images from a registry on loopback, and then checks for leftovers.
//
//	critest -critest PATH [-bin DIR] [-runtime NAME] [-cgroup-driver NAME] [-seed N] [-parallel N] [-- the tool's own flags]
//
// With -runtime crun, and on a host whose cgroup hierarchy crun refuses, it runs itself, the node
// and the tool in one separate mount namespace: tool and containers check each other's mounts. With
// -parallel, ginkgo must be in the directory of the binaries or in PATH.
//
// The tool itself is not part of this repository. Critest exits with the tool's exit code, or, if
// that is 0, with a failure if there are leftovers.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testcgroup"
)

// cleanWait bounds the wait for resources that end on their own.
const cleanWait = 10 * time.Second

// settings are the values of the command line.
type settings struct {
	tool, bin, runtime string
	cgroupDriver       string
	seed               int64
	parallel           int
	flags              []string // flags for the tool
}

func main() {
	var s settings
	flag.StringVar(&s.tool, "critest", "", "path of the tool")
	flag.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flag.StringVar(&s.runtime, "runtime", "", "OCI runtime: crun or runc; default: the node's choice")
	flag.StringVar(&s.cgroupDriver, "cgroup-driver", "", "systemd or cgroupfs, which is the default")
	flag.Int64Var(&s.seed, "seed", 0, "seed of the order of specs; 0 takes a new one")
	flag.IntVar(&s.parallel, "parallel", 1, "number of specs to run concurrently")
	flag.Parse()
	s.flags = flag.Args()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, s)
	if err == nil {
		fmt.Println("critest: the tool passed, and nothing is left")
		return
	}
	fmt.Fprintln(os.Stderr, "critest:", err)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	os.Exit(1)
}

func run(ctx context.Context, s settings) (err error) {
	if _, err := os.Stat(s.tool); err != nil {
		return fmt.Errorf("find the tool, named by CRITEST= or -critest: %w", err)
	}
	if s.runtime == "crun" && testcgroup.Hybrid() {
		return testcgroup.Enter()
	}
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	slot, err := node.TakeSlot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slot.Release()) }()
	served, err := serveImages(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, served.close()) }()
	n, err := node.Start(ctx, node.Options{
		Bin: s.bin, Name: slot.Name, State: slot.State, Data: slot.Data, Subnet: slot.Subnet, Metrics: slot.Metrics,
		Mirror: served.address, OCIRuntime: s.runtime, CgroupDriver: s.cgroupDriver,
	})
	if err != nil {
		return err
	}
	return errors.Join(s.test(ctx, n, served), n.Remove(context.WithoutCancel(ctx)))
}

// test runs the tool on the node and checks for leftovers.
func (s settings) test(ctx context.Context, n *node.Node, served stock) error {
	baseline, err := n.Settle(ctx)
	if err != nil {
		return err
	}
	// Libraries open these once, at their first use.
	baseline["daemon fd"] = append(baseline["daemon fd"], "/", "/sys/fs/cgroup")
	t, err := prepareTool(s, filepath.Join(n.Data, "tool"), served.digest)
	if err != nil {
		return err
	}
	ran := t.run(ctx, append([]string{"-runtime-endpoint", "unix://" + n.Socket(), "-nri-socket", n.PluginSocket()}, s.arguments()...))
	return errors.Join(ran, lookForLeaks(context.WithoutCancel(ctx), n, baseline))
}

// lookForLeaks returns what the tool's pods left: the tool removes its own pods, but not all of its
// images.
func lookForLeaks(ctx context.Context, n *node.Node, baseline node.Census) error {
	errs := []error{n.Empty(ctx), n.RemoveImages(ctx)}
	leaks, err := n.AwaitClean(ctx, baseline, patience.Of(cleanWait))
	errs = append(errs, err)
	for _, leak := range leaks {
		errs = append(errs, fmt.Errorf("left behind: %s", leak))
	}
	_, err = n.Mica(ctx, "check")
	errs = append(errs, err)
	if slices.ContainsFunc(leaks, func(leak string) bool { return strings.HasPrefix(leak, "goroutine") }) {
		stacks, err := n.DumpGoroutines()
		errs = append(errs, err)
		fmt.Fprintln(os.Stderr, stacks)
	}
	return errors.Join(errs...)
}

// stock is the registry with the tool's images.
type stock struct {
	address string
	digest  string // of the image that the tool names by digest
	close   func() error
}

// serveImages builds the tool's images and serves them.
func serveImages(ctx context.Context) (stock, error) {
	dir, digest, err := images.PrepareConformance(ctx)
	if err != nil {
		return stock{}, err
	}
	server, err := images.Registry(dir).Start("127.0.0.1:0")
	if err != nil {
		return stock{}, err
	}
	return stock{address: server.Addr, digest: digest, close: server.Close}, nil
}
