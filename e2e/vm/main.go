// Vm boots a Debian kernel with cgroup v2, systemd and AppArmor in qemu, and runs the built
// binaries' tests there, on a machine like a usual node.
//
//	vm [-nodes LIST] [-run REGEXP] [-critest PATH] [-critest-flags FLAGS]
//	vm [flags] -- COMMAND…
//
// Without a command it runs, in one boot, the tests of the packages that depend on the kernel. Then
// it runs the smoke set of the end-to-end tests on each kind of node and, with -critest, the CRI
// conformance tool. With a command it runs that instead, on its own standard streams; the binaries are
// in /share/bin. It ends with the exit code of what ran.
//
// The machine is emulated in software and 7 to 30 times slower than this one, so it is useful for
// functional tests but not for benchmarks. Its root file system is built once, from Debian
// packages, in the user's cache directory; writes to it are discarded. It has no connection to
// other machines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// settings are the values of the command line.
type settings struct {
	run          string // tests to run, of the end-to-end tests and of packages
	nodes        []kind
	critest      string // path of the conformance tool
	critestFlags string
	memory       int // of the machine, in MiB
	processors   int
	timeout      time.Duration
	console      string   // file for the console; "" shows its end on failure only
	command      []string // command to run instead of tests
}

// kind is a kind of node to test.
type kind struct{ driver, runtime string } // cgroup driver; OCI runtime

func parseKinds(list string) ([]kind, error) {
	var kinds []kind
	for name := range strings.SplitSeq(list, ",") {
		driver, runtime, ok := strings.Cut(name, "/")
		if !ok {
			return nil, fmt.Errorf("%q is not a cgroup driver and an OCI runtime, as in systemd/crun", name)
		}
		kinds = append(kinds, kind{driver, runtime})
	}
	return kinds, nil
}

func main() {
	var s settings
	nodes := flag.String("nodes", "systemd/runc,cgroupfs/crun", "kinds of nodes to test, each a cgroup driver and an OCI runtime")
	flag.StringVar(&s.run, "run", smoke(), "end-to-end tests to run, as in go test")
	flag.StringVar(&s.critest, "critest", "", "path of the CRI conformance tool, to run as well")
	flag.StringVar(&s.critestFlags, "critest-flags", "", "its flags")
	flag.IntVar(&s.memory, "memory", 3072, "MiB of memory")
	flag.IntVar(&s.processors, "processors", 2, "processors")
	flag.DurationVar(&s.timeout, "timeout", 4*time.Hour, "time after which the machine is ended by force")
	flag.StringVar(&s.console, "console", "", "file for the output of kernel and systemd")
	flag.Parse()
	s.command = flag.Args()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, s.timeout)
	defer cancel()
	code := 2
	var err error
	if s.nodes, err = parseKinds(*nodes); err == nil {
		code, err = run(ctx, s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run builds the missing parts, boots the machine, and returns the exit code of the command in it.
func run(ctx context.Context, s settings) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root, for owners and devices of the root file system")
	}
	disk, err := openDisk(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, disk.close()) }()
	dir, err := os.MkdirTemp("", "mica-vm-")
	if err != nil {
		return 0, fmt.Errorf("make directory for the machine: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := machine{settings: s, disk: disk.dir, dir: dir}
	if m.images, err = stage(ctx, s, m.share()); err != nil {
		return 0, err
	}
	return m.run(ctx)
}

// runCommand runs a command on this machine. Errors contain its output.
func runCommand(ctx context.Context, name string, arguments ...string) error {
	cmd := exec.CommandContext(ctx, name, arguments...)
	cmd.WaitDelay = 10 * time.Second // for the command's children
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(arguments, " "), err, out)
	}
	return nil
}
