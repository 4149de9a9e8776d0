// Cluster is the program of `make cluster` and `make cluster-down`: a Kubernetes cluster on Mica
// that keeps running when the program ends.
//
//	cluster up   [-name NAME] [-bin DIR] [-root DIR] [-nodes N]
//	cluster down [-name NAME] [-bin DIR]
//
// The cluster's files are in /run/NAME and /var/lib/NAME, by default mica-cluster. Its nodes are in
// separate network namespaces; its API server is at 127.0.0.1:6443 of the machine. A second up
// restarts the daemons with the current binaries. The tests' own cluster is mica-suite. The command
// relay is internal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/cluster"
)

// address is the API server's address on the machine.
const address = "127.0.0.1:6443"

type settings struct {
	name, bin, root string
	nodes           int
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("usage: cluster up|down [flags]")
	}
	if arguments[0] == "relay" {
		return cluster.Relay()
	}
	var s settings
	flags := flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	flags.StringVar(&s.name, "name", "mica-cluster", "name of the cluster, at most 12 bytes")
	flags.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flags.StringVar(&s.root, "root", "../..", "root directory of the module")
	flags.IntVar(&s.nodes, "nodes", 1, "number of nodes, 1 to 9")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts, cgroups")
	}
	var err error
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	if s.root, err = filepath.Abs(s.root); err != nil {
		return err
	}
	switch arguments[0] {
	case "up":
		return s.up(ctx)
	case "down":
		return s.down(ctx)
	}
	return fmt.Errorf("unknown command %q", arguments[0])
}

func (s settings) options(tools string) cluster.Options {
	return cluster.Options{Name: s.name, Bin: s.bin, Tools: tools, Size: s.nodes}
}

func (s settings) up(ctx context.Context) error {
	tools, err := cluster.BuildTools(ctx, s.root, func(line string) { fmt.Println(line) })
	if err != nil {
		return err
	}
	if _, err := cluster.BuildImages(ctx, s.root, tools); err != nil {
		return err
	}
	begin := time.Now()
	c, err := cluster.Up(ctx, s.options(tools))
	if errors.Is(err, cluster.ErrRuns) {
		if c, err = cluster.Open(ctx, s.options(tools)); err == nil {
			err = c.ReplaceMica(ctx)
		}
	}
	if err != nil {
		return err
	}
	config, err := c.Publish(ctx, address, filepath.Join(s.bin, "cluster"))
	if err != nil {
		return err
	}
	fmt.Printf("ready after %.1f s\n\n", time.Since(begin).Seconds())
	return errors.Join(describe(ctx, c, config), c.Release())
}

func describe(ctx context.Context, c *cluster.Cluster, config string) error {
	nodes, err := c.Kubectl(ctx, "get", "nodes", "--output=wide")
	if err != nil {
		return err
	}
	n := c.Nodes[0]
	fmt.Printf(`%[1]s
The cluster runs until `+"`make cluster-down`"+`. To use it:
  export KUBECONFIG=%[2]s PATH=%[3]s:$PATH
  kubectl run web --image=%[4]s
A shell on %[5]s, and the logs of its programs:
  %[6]s
  tail -f %[7]s
  crictl --runtime-endpoint unix://%[8]s ps
`, nodes, config, c.Tools, cluster.Nginx, n.Name, n.Shell(), n.Log("*"), n.Mica.Socket())
	return nil
}

func (s settings) down(ctx context.Context) error {
	c, err := cluster.Open(ctx, s.options(""))
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println("no cluster runs")
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(c.Down(ctx), c.Release()); err != nil {
		return err
	}
	fmt.Println("stopped; nothing is left: no process, mount, link, cgroup or file")
	return nil
}
