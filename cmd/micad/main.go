// Command micad is the Mica daemon. It reads its configuration, opens the stores, finds or starts
// the keeper, recovers pods and containers, and serves the CRI until it is stopped.
//
// Stopping it, by SIGTERM or by kill -9, leaves containers and keeper running; the next daemon
// finds them. SIGHUP reloads the configuration. The exit code is 0 after a requested stop, 2 for an
// invalid command line or configuration, and 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/descriptors"
	"github.com/micarun/mica/internal/sdnotify"
	"github.com/micarun/mica/internal/signals"
	"github.com/micarun/mica/internal/version"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// umask applies to the files and directories of pods, which containers read that do not run as
// root. The daemon sets it because it may have inherited another one. Private files have an
// explicit mode.
const umask = 0o022

func main() {
	unix.Umask(umask)
	// The main goroutine keeps the main thread. Pods' namespaces are created on other threads,
	// which then exit. The main thread cannot exit, so a namespace created on it would live as long
	// as the daemon.
	runtime.LockOSThread()
	if err := errors.Join(signals.RestoreInherited(), descriptors.RaiseLimit()); err != nil {
		fmt.Fprintln(os.Stderr, "micad:", err)
		os.Exit(exitFailed)
	}
	os.Exit(run(os.Args[1:], time.Now(), os.Stderr))
}

// run runs the daemon and returns its exit code.
func run(args []string, started time.Time, stderr io.Writer) int {
	flags := flag.NewFlagSet("micad", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", config.DefaultPath, "configuration `file`; conf.d/*.toml beside it is read as well")
	show := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "micad: unexpected argument %q\n", flags.Arg(0))
		return exitUsage
	case *show:
		fmt.Fprintln(os.Stdout, version.String())
		return 0
	}
	c, err := config.Load(*path)
	if err != nil {
		fmt.Fprintln(stderr, "micad:", err)
		return exitUsage
	}
	manager, err := sdnotify.Take()
	if err != nil {
		fmt.Fprintln(stderr, "micad:", err)
		return exitUsage
	}
	level := setLog(c.Log, stderr)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx = klog.NewContext(ctx, klog.Background())
	// Registered before the start, so that a SIGHUP during the start does not kill the daemon.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	d := &daemon{path: *path, config: c.Resolved(), started: started, level: level, stop: stop, hangups: hangups, manager: manager}
	if err := d.run(ctx); err != nil {
		klog.Background().Error(err, "Daemon ended")
		return exitFailed
	}
	return 0
}
