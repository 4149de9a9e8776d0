// Command micad is the Mica daemon: it reads its configuration, opens the stores,
// finds or starts the keeper, brings pods and containers back to what they were,
// and serves the CRI until it is told to stop.
//
// Stopping it, by SIGTERM or by kill -9, leaves containers and keeper running; the
// next start finds them. SIGHUP reads the configuration again. It exits with 0
// after a stop that it was asked for, with 2 for a command line or configuration
// that cannot work, and with 1 for everything else.
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
	"github.com/micarun/mica/internal/sdnotify"
	"github.com/micarun/mica/internal/version"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// umask is what files and directories of pods are made with, whatever the daemon
// was started with: containers that do not run as root read them. What is private
// has an explicit mode.
const umask = 0o022

func main() {
	unix.Umask(umask)
	// The main goroutine keeps the main thread to itself. Pods' namespaces are made
	// on other threads, which end afterwards; the main thread cannot end, and a
	// namespace that was made on it would live as long as the daemon.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], time.Now(), os.Stderr))
}

// run is the daemon from its command line to its exit code.
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
	// From here on, so that a hang-up in the middle of the start does not end it.
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
