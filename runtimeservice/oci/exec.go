package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// killTimeout is how long a killed exec process may take to vanish.
const killTimeout = 5 * time.Second

// startGrace is how much longer than the caller a runtime may take to start a
// process, which is then killed in good order.
const startGrace = 5 * time.Second

// The names in an exec's directory. The runtime runs inside of it, because
// the path of a socket may have 107 bytes only.
const (
	processFile = "process.json"
	pidFile     = "pid"
	logFile     = "log"
	consoleFile = "tty"
)

// ExecArgs describes a process to run in a running container.
type ExecArgs struct {
	// ID is the container's.
	ID string
	// Process is what runs; Process.Terminal decides about a terminal.
	Process *specs.Process
	// Stdin is copied to the process until EOF; nil means /dev/null. If it
	// is an io.Closer it is closed when the process has ended, which must
	// end a Read that hangs.
	Stdin io.Reader
	// Stdout and Stderr take the output; nil discards it. With a terminal
	// everything goes to Stdout. Without one, an *os.File of the three is
	// given to the process as it is.
	Stdout, Stderr io.Writer
	// UID and GID own the pipes between the process and the caller, so that
	// the process may open them again as /dev/stdout: the root of the
	// container's user namespace.
	UID, GID int
	// OutputUntil says how long Wait waits for output that something else holds open when the
	// process has ended: until the channel is closed, which the end of the container should do.
	// nil is for callers that want an answer soon, and so is a terminal, which the jobs of a shell
	// hold open: Wait waits while output keeps coming, for some seconds at most.
	OutputUntil <-chan struct{}
}

// ExecProcess is a process that Exec has started. Wait must be called exactly
// once; the other methods may be called at any time by anybody.
type ExecProcess struct {
	pid   int
	pidfd *os.File
	stdio *stdio
	until <-chan struct{} // OutputUntil, nil with a terminal
	// unfreeze is Options.Unfreeze.
	unfreeze func(pids []int) error

	exited chan struct{} // closed when the process is reaped; code and err are set before
	code   int
	err    error
}

// Exec starts a process in a running container and returns when it runs.
// ctx bounds the start only. ErrNotFound and ErrFailedPrecondition tell that
// the container does not exist or does not run; any other error carries the
// runtime's message, for example that the command was not found.
func (r *Runtime) Exec(ctx context.Context, a ExecArgs) (*ExecProcess, error) {
	if a.Process == nil || r.options.Reaper == nil {
		return nil, fmt.Errorf("exec in container %s: no process or no reaper: %w", a.ID, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	dir, err := r.execDir(a.Process)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next start takes what stays
	s, err := newStdio(a, dir)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
	}
	// From here no child is reaped until the new process, which becomes ours
	// when the runtime exits, has an owner.
	release := r.options.Reaper.Hold()
	defer release()
	pid, err := r.startExec(ctx, a, dir, s)
	if err != nil {
		s.close()
		return nil, err
	}
	p := &ExecProcess{pid: pid, stdio: s, unfreeze: r.options.Unfreeze, exited: make(chan struct{})}
	if !a.Process.Terminal {
		p.until = a.OutputUntil
	}
	owned := r.options.Reaper.Own(pid)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // still ours, as nobody reaps
		s.close()
		owned()
		return nil, fmt.Errorf("exec in container %s: open pidfd of %d: %w", a.ID, pid, err)
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	if a.Process.Terminal {
		err = s.acceptConsole(ctx)
	}
	s.start()
	go p.reap(r, owned)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", a.ID, errors.Join(err, p.abandon()))
	}
	return p, nil
}

// abandon kills a process that nobody will wait for.
func (p *ExecProcess) abandon() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(nil)
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// execDir makes the directory of one exec and writes the process into it.
func (r *Runtime) execDir(p *specs.Process) (string, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	if err := r.makeWorkDir(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(r.options.WorkDir, "exec-")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, processFile), text, 0o600); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// startExec runs the runtime's exec, which leaves the process behind, and
// returns its pid.
func (r *Runtime) startExec(ctx context.Context, a ExecArgs, dir string, s *stdio) (int, error) {
	args := append(r.Args(), "--log", logFile, "--log-format", "json",
		"exec", "--detach", "--process", processFile, "--pid-file", pidFile)
	if s.console != nil {
		args = append(args, "--console-socket", consoleFile)
	}
	// A runtime that is killed at the wrong moment leaves a process behind
	// that nobody knows, so it gets a little longer than the caller.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.options.Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(startGrace, cancel) })()
	cmd := exec.CommandContext(patient, args[0], append(args[1:], a.ID)...)
	cmd.Dir = dir
	cmd.WaitDelay = killDelay
	s.giveTo(cmd)
	err := runScored(cmd, a.Process.OOMScoreAdj)
	s.closeChild()
	if patient.Err() != nil {
		err = context.DeadlineExceeded
	}
	pid, pidErr := readPid(filepath.Join(dir, pidFile))
	if err != nil {
		if pidErr == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // an orphan of ours, not yet reaped: we hold
		}
		log, _ := os.ReadFile(filepath.Join(dir, logFile))
		return 0, r.failure("exec", err, log)
	}
	if pidErr != nil {
		return 0, fmt.Errorf("exec in container %s: %w", a.ID, pidErr)
	}
	if a.Process.OOMScoreAdj != nil {
		scoreProcess(pid, *a.Process.OOMScoreAdj)
	}
	return pid, nil
}

// runScored runs the command with the oom_score_adj that the process is to have.
// crun's exec ignores the one in the process description: the process would keep
// the daemon's, by which the kernel spares it when memory is short.
func runScored(cmd *exec.Cmd, score *int) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if score != nil {
		scoreProcess(cmd.Process.Pid, *score)
	}
	return cmd.Wait()
}

// scoreProcess sets a process's oom_score_adj. One that has ended needs none, and a
// host that refuses a lower score has refused it to the container before.
func scoreProcess(pid, score int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
}

func readPid(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read pid: %q: %w", text, errdefs.ErrInternal)
	}
	return pid, nil
}

// reap collects the process when it ends.
func (p *ExecProcess) reap(r *Runtime, owned func()) {
	defer owned()
	defer close(p.exited)
	status, err := r.options.Reaper.Wait(context.Background(), p.pid)
	p.code, p.err = status.Code, err
}

// Pid is the process ID on the host.
func (p *ExecProcess) Pid() int { return p.pid }

// Wait returns the exit code when the process has ended and its output is
// copied. What a surviving child still holds open is waited for as
// ExecArgs.OutputUntil says, read as far as it was written by then, and closed.
// A process that died by a signal gives 128 + its number. When ctx ends before
// the process, the process and everything it left behind in its session is
// killed and ctx's error returned.
func (p *ExecProcess) Wait(ctx context.Context) (int, error) {
	defer p.stdio.close()
	defer p.pidfd.Close()
	select {
	case <-p.exited:
	case <-ctx.Done():
		err := p.kill()
		select {
		case <-p.exited:
		case <-time.After(killTimeout):
			err = errors.Join(err, fmt.Errorf("process %d does not die", p.pid))
		}
		return 0, errors.Join(context.Cause(ctx), err)
	}
	if err := p.stdio.drain(ctx, p.until); err != nil {
		return 0, err
	}
	if p.err != nil {
		return 0, fmt.Errorf("wait for exec process: %w", p.err)
	}
	return p.code, nil
}

// Signal sends sig to every process of the exec's session. ErrNotFound tells
// that the process has ended.
func (p *ExecProcess) Signal(sig syscall.Signal) error {
	select {
	case <-p.exited:
		return fmt.Errorf("signal exec process %d: %w", p.pid, errdefs.ErrNotFound)
	default:
	}
	pids, err := sessionOf(p.pid)
	if err != nil {
		return fmt.Errorf("signal exec process %d: %w", p.pid, err)
	}
	var errs []error
	for _, pid := range pids {
		errs = append(errs, ignoreGone(unix.Kill(pid, sig)))
	}
	return errors.Join(append(errs, ignoreGone(p.signalLeader(sig)))...)
}

// signalLeader goes through the pidfd, which can never mean another process.
// ESRCH tells that it has ended.
func (p *ExecProcess) signalLeader(sig syscall.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return unix.ESRCH // closed: Wait has returned
	}
	var send error
	if err := raw.Control(func(fd uintptr) { send = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return unix.ESRCH
	}
	return send
}

// kill kills the session. The leader is stopped first and killed last: as
// long as it is there, its number names this session and no other.
func (p *ExecProcess) kill() (err error) {
	if err := p.signalLeader(syscall.SIGSTOP); err != nil {
		return ignoreGone(err)
	}
	defer func() { err = errors.Join(err, ignoreGone(p.signalLeader(syscall.SIGKILL))) }()
	deadline := time.Now().Add(killTimeout)
	for time.Now().Before(deadline) {
		pids, err := sessionOf(p.pid)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := ignoreGone(unix.Kill(pid, unix.SIGKILL)); err != nil {
				return err
			}
		}
		if err := p.unfreeze(append(pids, p.pid)); err != nil || len(pids) == 0 {
			return err
		}
		time.Sleep(time.Millisecond) // the next look finds what was forked meanwhile
	}
	return fmt.Errorf("session of process %d: %w", p.pid, context.DeadlineExceeded)
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Resize sets the size of the terminal in characters. Without a terminal it
// is ErrFailedPrecondition.
func (p *ExecProcess) Resize(width, height uint16) error {
	return p.stdio.resize(width, height)
}
