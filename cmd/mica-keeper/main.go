// Command mica-keeper is the parent of every container of a node. It is the command line of package
// server.
//
//	mica-keeper start --dir DIR    start a keeper in the background and wait until it is ready
//	mica-keeper run --dir DIR      run the keeper in the foreground, for a service manager
//	mica-keeper version            print the protocol's version
//
// start exits with 0 if a keeper serves DIR, whether it is new or existed before, and otherwise
// with 1 and a reason on stderr. run notifies the service manager (sd_notify) when it is ready. It
// exits with 0 after a requested shutdown, with 3 if another keeper serves DIR, and with 1
// otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/micarun/mica/internal/descriptors"
	"github.com/micarun/mica/internal/sdnotify"
	"github.com/micarun/mica/internal/signals"
	"github.com/micarun/mica/runtimeservice/keeper/server"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

const (
	exitFailed = 1
	exitLocked = 3
)

// umask is set explicitly, because OCI runtimes and containers inherit it.
const umask = 0o022

func main() {
	unix.Umask(umask)
	err := errors.Join(signals.RestoreInherited(), descriptors.RaiseLimit())
	if err == nil {
		err = run(os.Args[1:])
	}
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "mica-keeper:", err)
	if errors.Is(err, server.ErrLocked) {
		os.Exit(exitLocked)
	}
	os.Exit(exitFailed)
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("missing command: start, run or version")
	}
	flags := flag.NewFlagSet("mica-keeper "+args[0], flag.ContinueOnError)
	dir := flags.String("dir", "", "state directory")
	resume := flags.Int("resume", 0, "descriptor with the state of a replaced program")
	ready := flags.Int("ready", 0, "descriptor to close when ready")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] != "version" && !filepath.IsAbs(*dir) {
		return errors.New("--dir must be an absolute path")
	}
	switch args[0] {
	case "version":
		fmt.Printf("mica-keeper protocol %d\n", wire.Version)
		return nil
	case "start":
		return start(*dir)
	case "run":
		return serve(*dir, *resume, *ready)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// maxLog is the size in bytes beyond which start truncates the keeper's log.
const maxLog = 1 << 20

// start is the first child of a double fork: the keeper outlives it and is reparented to the
// nearest subreaper.
func start(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	logFlags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if st, err := os.Stat(filepath.Join(dir, "keeper.log")); err == nil && st.Size() > maxLog {
		logFlags |= os.O_TRUNC
	}
	logFile, err := os.OpenFile(filepath.Join(dir, "keeper.log"), logFlags, 0o600)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "run", "--dir", dir, "--ready", "3")
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w}
	// Descriptors inherited from the daemon's caller must not stay open in the keeper.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		log.Printf("close inherited descriptors: %v", err) // Linux before 5.11
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if text := string(said); text != "" && text != server.ErrLocked.Error() {
		return errors.New(strings.TrimSpace(text))
	}
	return nil
}

// processName is the name in ps. The kernel allows 15 bytes.
const processName = "mica-keeper"

// nameProcess sets the name of the whole process. start executes /proc/self/exe, and the kernel
// takes the name from the path: "exe".
func nameProcess() {
	if err := os.WriteFile("/proc/self/comm", []byte(processName), 0); err != nil {
		log.Printf("set process name: %v", err)
	}
}

// serve runs the keeper until SIGTERM or a client's request. A hang-up or a terminal does not end
// it.
func serve(dir string, resume, ready int) error {
	debug.SetGCPercent(25)
	runtime.GOMAXPROCS(2)
	nameProcess()
	log.SetFlags(log.LstdFlags | log.LUTC | log.Lmsgprefix)
	log.SetPrefix("mica-keeper: ")
	// Caught and discarded, not ignored: containers would inherit ignored signals.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	manager, err := sdnotify.Take()
	if err != nil {
		return err
	}
	o := server.Options{Dir: dir, Resume: resume, OwnCgroup: manager.Waits(), Serving: func() {
		if err := manager.Ready("Serving " + dir); err != nil {
			log.Printf("%v", err)
		}
	}}
	if ready > 0 {
		syscall.CloseOnExec(ready)
		o.Ready = os.NewFile(uintptr(ready), "ready")
	}
	err = server.Run(ctx, o)
	if errors.Is(err, server.ErrLocked) {
		// Report ready: the directory is served, and systemd would count an exit before readiness
		// as a failure.
		if err := manager.Ready("Another keeper serves " + dir); err != nil {
			log.Printf("%v", err)
		}
	}
	if err != nil && o.Ready != nil {
		_, _ = o.Ready.WriteString(err.Error())
	}
	return err
}
