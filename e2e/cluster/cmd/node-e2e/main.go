// Node-e2e is the program of `make node-e2e`: it runs the Kubernetes project's node tests on a node
// of Mica in separate namespaces.
//
//	node-e2e [-bin DIR] [-root DIR] [-focus RE] [-skip RE] [-parallel N] [-runtime NAME] [-timeout D] [-report DIR]
//
// It prints the skipped and the failed specs. It ends with an error if a spec failed or anything is
// left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/cluster"
)

func main() {
	s := cluster.Suite{Options: cluster.Options{Name: "mica-nodee2e"}}
	var root string
	flag.StringVar(&s.Bin, "bin", "bin", "directory of the built binaries")
	flag.StringVar(&root, "root", "../..", "root directory of the module")
	flag.StringVar(&s.Focus, "focus", `\[NodeConformance\]`, "regular expression of the specs to run")
	flag.StringVar(&s.Skip, "skip", `\[Serial\]|\[Flaky\]|\[Slow\]`, "regular expression of the specs not to run")
	flag.IntVar(&s.Parallel, "parallel", 8, "number of specs to run concurrently")
	flag.StringVar(&s.Runtime, "runtime", "", "OCI runtime: crun or runc; default: the node's choice")
	flag.DurationVar(&s.Timeout, "timeout", 2*time.Hour, "time limit for all specs")
	flag.StringVar(&s.Report, "report", "", "directory of logs and reports, which is replaced; default node-e2e in the directory of the binaries")
	flag.Parse()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, s, root); err != nil {
		fmt.Fprintln(os.Stderr, "node-e2e:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s cluster.Suite, root string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts, cgroups")
	}
	if s.Report == "" {
		s.Report = filepath.Join(s.Bin, "node-e2e")
	}
	for _, path := range []*string{&s.Bin, &s.Report, &root} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if s.Tools, err = cluster.BuildSuite(ctx, root, func(line string) { fmt.Println(line) }); err != nil {
		return err
	}
	if err := cluster.BuildSuiteImages(ctx, root, s.Tools); err != nil {
		return err
	}
	fmt.Println("running specs; logs are in", s.Report)
	summary, err := s.Run(ctx)
	fmt.Println(summary)
	if err != nil {
		return err
	}
	fmt.Println("nothing is left: no process, mount, link, cgroup or file")
	if len(summary.Failed) > 0 || len(summary.Broken) > 0 {
		return fmt.Errorf("%d specs failed", len(summary.Failed))
	}
	return nil
}
