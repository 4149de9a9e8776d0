package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// defaultTimeout bounds a run of the OCI runtime.
const defaultTimeout = 60 * time.Second

// command is one run of the OCI runtime.
type command struct {
	rec   record
	args  []string
	files [3]*os.File // stdio; nil stdin and stdout mean /dev/null, nil stderr goes into the error
}

// timeout returns how long a step of the container may take.
func (r record) timeout() time.Duration {
	if r.Create.Timeout > 0 {
		return r.Create.Timeout
	}
	return defaultTimeout
}

// runRuntime runs the OCI runtime and waits for it. The error carries the runtime's own message.
func (s *Server) runRuntime(ctx context.Context, c command) error {
	timeout := c.rec.timeout()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	logPath := s.path(c.rec.ID, "runtime.log")
	// The directory may be missing if the record was removed from outside; Delete must work
	// nevertheless.
	if err := os.MkdirAll(filepath.Dir(logPath), 0o700); err != nil {
		return err
	}
	defer func() { _ = os.Remove(logPath) }()
	cmd := runtimeCommand(ctx, c, logPath)
	complaints, err := memFile("mica-runtime-stderr")
	if err != nil {
		return err
	}
	defer func() { _ = complaints.Close() }()
	if cmd.Stderr == nil {
		cmd.Stderr = complaints
	}
	err = s.await(cmd)
	if err == nil {
		return nil
	}
	what := filepath.Base(c.rec.Create.Runtime[0]) + " " + c.args[0]
	if wire.Exhausted(err) { // the runtime was not started
		return fmt.Errorf("%s of container %s: %w", what, c.rec.ID, err)
	}
	if ctx.Err() == context.DeadlineExceeded {
		return wire.Errorf(wire.CodeDeadline, "%s of container %s: the runtime did not end within %v: %s", what, c.rec.ID, timeout, runtimeMessage(logPath, complaints, err))
	}
	return wire.Errorf(wire.CodeInternal, "%s of container %s: %s", what, c.rec.ID, runtimeMessage(logPath, complaints, err))
}

// mustRun is runRuntime for steps that must work without a free descriptor: ending and removing
// containers.
func (s *Server) mustRun(ctx context.Context, c command) error {
	return s.runs.lend(func() error { return s.runRuntime(ctx, c) })
}

func runtimeCommand(ctx context.Context, c command, logPath string) *exec.Cmd {
	prefix := c.rec.Create.Runtime
	argv := append([]string{}, prefix[1:]...)
	argv = append(argv, "--log", logPath, "--log-format", "json")
	cmd := exec.CommandContext(ctx, prefix[0], append(argv, c.args...)...)
	cmd.Dir = c.rec.Create.Bundle
	if _, err := os.Stat(cmd.Dir); err != nil {
		cmd.Dir = "/" // delete must work without the bundle
	}
	cmd.Env = append(os.Environ(), c.rec.Create.Env...)
	for i, to := range []func(*os.File){
		func(f *os.File) { cmd.Stdin = f },
		func(f *os.File) { cmd.Stdout = f },
		func(f *os.File) { cmd.Stderr = f },
	} {
		if c.files[i] != nil {
			to(c.files[i])
		}
	}
	// The runtime runs in a process group, which is killed as a whole. It must not outlive the
	// keeper, because the next keeper cleans up after it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// await runs cmd as a child that the reaper does not collect. Until await returns, the reaper also
// does not collect the processes that the runtime leaves, so that the caller can own them. The
// thread is locked because the parent death signal depends on the thread.
func (s *Server) await(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	release, err := s.reaper.Start(cmd)
	if err != nil {
		return err
	}
	defer release()
	return cmd.Wait()
}

// runtimeMessage returns the runtime's own message: the errors in its log, otherwise its stderr,
// otherwise its exit status.
func runtimeMessage(logPath string, complaints *os.File, err error) string {
	data, _ := os.ReadFile(logPath)
	if text := logErrors(string(data)); text != "" {
		return text
	}
	if text := tail(complaints); text != "" {
		return text
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.String()
	}
	return err.Error()
}

// logErrors joins the error messages in a runtime's JSON log. If no entry has an error level, it
// returns the last message.
func logErrors(text string) string {
	var found []string
	last := ""
	for line := range strings.Lines(text) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg == "" {
			continue
		}
		last = strings.TrimSpace(entry.Msg)
		switch entry.Level {
		case "error", "fatal", "panic":
			found = append(found, last)
		}
	}
	if len(found) == 0 {
		return last
	}
	return strings.Join(found, "; ")
}

func tail(f *os.File) string {
	size, err := f.Seek(0, 2)
	if err != nil || size == 0 {
		return ""
	}
	buf := make([]byte, min(size, wire.MaxText/2))
	n, _ := f.ReadAt(buf, size-int64(len(buf)))
	return strings.TrimSpace(string(buf[:n]))
}

func memFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
