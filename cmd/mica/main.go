// Command mica is the node tool. It shows the daemon's state and operations, checks the node for
// damage and leftovers, profiles the daemon, shows and checks the configuration, and stops the
// daemon. Pods and images are managed by CRI tools such as crictl.
//
// Results go to standard output, everything else to standard error. The exit code is 0 on success,
// 1 on a failure (a check found problems, the daemon does not answer), and 2 for an invalid command
// line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/version"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// tool is one run of mica.
type tool struct {
	path   string // of the configuration file
	stdout io.Writer
	stderr io.Writer
}

// command is a subcommand. run returns errUsage for invalid arguments.
type command struct {
	name, args, help string
	run              func(t *tool, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"info", "", "show version, directories and sockets of the running daemon", (*tool).info},
		{"check", "[--content]", "check the whole node for damage and leftovers", (*tool).check},
		{"events", "[--follow] [--running] [--pod NAME] [--json]", "show running and recent operations with their stages", (*tool).events},
		{"debug", "profile KIND [--seconds N] [--output FILE]", "write a profile of the daemon to a file; kinds: cpu, heap, goroutine, trace", (*tool).debug},
		{"config", "default|dump|check", "print a commented configuration file, print the settings in force, or check the files", (*tool).config},
		{"stop", "[--all|--keeper]", "end the daemon; with --keeper also the keeper and the embedded network, with --all also all pods", (*tool).stop},
		{"version", "", "print the version", (*tool).version},
	}
}

// errUsage means that the command line was invalid and the message is already printed.
var errUsage = errors.New("usage")

// errQuiet means failure; the message is already printed.
var errQuiet = errors.New("failed")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	t := &tool{stdout: stdout, stderr: stderr}
	flags := t.flags("mica")
	flags.StringVar(&t.path, "config", config.DefaultPath, "configuration `file` of the daemon")
	flags.Usage = func() { usage(stderr, flags) }
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return exitUsage
	}
	for _, c := range commands() {
		if c.name == flags.Arg(0) {
			return t.exitCode(c.run(t, ctx, flags.Args()[1:]))
		}
	}
	usage(stderr, flags)
	return exitUsage
}

func (t *tool) exitCode(err error) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return exitUsage
	case !errors.Is(err, errQuiet):
		fmt.Fprintln(t.stderr, "mica:", err)
	}
	return exitFailed
}

func usage(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintln(w, "Usage: mica [--config FILE] COMMAND")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(table, "  %s %s\t%s\n", c.name, c.args, c.help)
	}
	_ = table.Flush()
	fmt.Fprintln(w, "Options:")
	flags.PrintDefaults()
}

// flags returns a flag set that prints its errors to standard error.
func (t *tool) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(t.stderr)
	return f
}

// parse parses a subcommand's flags and rejects further arguments.
func (t *tool) parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(t.stderr, "%s: unexpected argument %q\n", f.Name(), f.Arg(0))
		return errUsage
	}
	return nil
}

func (t *tool) version(_ context.Context, args []string) error {
	if err := t.parse(t.flags("mica version"), args); err != nil {
		return err
	}
	_, err := fmt.Fprintln(t.stdout, version.String())
	return err
}

// load returns the configuration that the daemon would start with.
func (t *tool) load() (config.Config, error) {
	c, err := config.Load(t.path)
	return c.Resolved(), err
}
