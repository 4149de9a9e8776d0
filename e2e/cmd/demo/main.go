// Demo is the program of `make run` and `make stop`. It runs a separate node on this machine, with
// a registry of test images on loopback, and a pod on it.
//
//	demo run  [-bin DIR] [-image REF]
//	demo stop [-bin DIR]
//
// The node uses /run/mica-demo and /var/lib/mica-demo; its pods are on the bridge mica-demo and in
// the cgroup /mica-demo. It changes nothing else on the machine. It keeps running when demo ends. A
// second run restarts the daemon with the current binaries, and replaces the pod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/node"
)

// settings are the values of the flags.
type settings struct {
	bin, image, registry string
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("usage: demo run|stop [flags]")
	}
	var s settings
	flags := flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	flags.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flags.StringVar(&s.image, "image", "", "image to run; default nginx from the registry on loopback")
	flags.StringVar(&s.registry, "registry", "127.0.0.1:5055", "loopback address of the registry")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts, cgroups")
	}
	bin, err := filepath.Abs(s.bin)
	if err != nil {
		return err
	}
	s.bin = bin
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	switch arguments[0] {
	case "run":
		return start(ctx, s)
	case "stop":
		return stop(ctx, s)
	}
	return fmt.Errorf("unknown command %q", arguments[0])
}

// options are the options of the machine's single demo node.
func (s settings) options() node.Options {
	return node.Options{
		Bin:    s.bin,
		Name:   "mica-demo",
		State:  "/run/mica-demo",
		Data:   "/var/lib/mica-demo",
		Subnet: netip.MustParsePrefix("10.89.0.0/24"),
	}
}
