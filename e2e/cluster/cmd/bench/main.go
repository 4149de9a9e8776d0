// Bench is the program of `make cluster-bench`: a node full of pods under a real kubelet,
// alternately on Mica and on containerd. It prints a table in Markdown.
//
//	bench [-bin DIR] [-root DIR] [-containerd FILE] [-pods N] [-rounds N] [-idle TIME]
//
// A turn is a new cluster of one node, in separate network namespaces: all pods are created at
// once, run idle for a while, and are deleted at once. Both runtimes have the same OCI runtime,
// network configuration, image, registry and disk. The figures are medians of the rounds.
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
	"runtime"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/cluster"
)

// settings are the values of the flags.
type settings struct {
	bin, root, containerd string
	pods, rounds          int
	idle                  time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	var s settings
	flag.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flag.StringVar(&s.root, "root", "../..", "root directory of the module")
	flag.StringVar(&s.containerd, "containerd", "containerd", "containerd to compare with Mica")
	flag.IntVar(&s.pods, "pods", 110, "pods on the node, at most 110")
	flag.IntVar(&s.rounds, "rounds", 3, "turns of each runtime")
	flag.DurationVar(&s.idle, "idle", 30*time.Second, "how long the pods run")
	flag.Parse()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: namespaces, mounts, cgroups")
	}
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	if s.root, err = filepath.Abs(s.root); err != nil {
		return err
	}
	if s.containerd, err = exec.LookPath(s.containerd); err != nil {
		return fmt.Errorf("find containerd: %w", err)
	}
	tools, err := cluster.BuildTools(ctx, s.root, func(line string) { fmt.Fprintln(os.Stderr, line) })
	if err != nil {
		return err
	}
	if _, err := cluster.BuildImages(ctx, s.root, tools); err != nil {
		return err
	}
	var mica, containerd []figures
	for round := range s.rounds {
		for _, peer := range []struct {
			binary  string
			results *[]figures
		}{{"", &mica}, {s.containerd, &containerd}} {
			o := cluster.Options{Name: "mica-bench", Bin: s.bin, Tools: tools, Size: 1, Metered: true, Containerd: peer.binary}
			f, err := turn(ctx, s, o)
			if err != nil {
				return err
			}
			*peer.results = append(*peer.results, f)
			fmt.Fprintf(os.Stderr, "round %d: %s\n", round+1, f)
		}
	}
	printConditions(ctx, s, tools)
	printTable(mica, containerd)
	return nil
}

// turn measures a new cluster.
func turn(ctx context.Context, s settings, o cluster.Options) (_ figures, err error) {
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Down(context.WithoutCancel(ctx)), c.Release()) }()
	f, err := measure(ctx, c, s)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, c.LogTails(15))
	}
	return f, nil
}

// printConditions prints the versions and the machine.
func printConditions(ctx context.Context, s settings, tools string) {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("%d cores, Linux %s; %s; %s; %s; CNI plugins of Debian (bridge, host-local, portmap);\n",
		runtime.NumCPU(), strings.TrimSpace(string(kernel)), version(ctx, filepath.Join(tools, "kubelet")), version(ctx, s.containerd), version(ctx, "runc"))
	fmt.Printf("%d pods; %d rounds, in turns; idle for %s.\n\n", s.pods, s.rounds, s.idle)
}

func version(ctx context.Context, program string) string {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return program + ": " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
