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
	"k8s.io/klog/v2"
)

// killTimeout bounds the wait for a killed exec process to exit.
const killTimeout = 5 * time.Second

// startGrace is how long the runtime may continue after the caller's deadline. The runtime then has
// time to write the pid file, by which the process is found and killed.
const startGrace = 5 * time.Second

// Names in an exec's directory. The runtime's working directory is that directory, because a socket
// path is limited to 107 bytes.
const (
	processFile = "process.json"
	pidFile     = "pid"
	logFile     = "log"
	consoleFile = "tty"
)

// ExecArgs describes a process to run in a running container.
type ExecArgs struct {
	// ID is the container's ID.
	ID string
	// Process is the process to run. Process.Terminal selects a terminal instead of pipes.
	Process *specs.Process
	// Stdin is copied to the process until EOF; nil means /dev/null. If Stdin is an io.Closer, it
	// is closed after the process has ended. Close must then interrupt a blocked Read.
	Stdin io.Reader
	// Stdout and Stderr receive the output; nil discards it. With a terminal all output goes to
	// Stdout. Without a terminal, Stdin, Stdout or Stderr that is an *os.File is passed to the
	// process directly.
	Stdout, Stderr io.Writer
	// UID and GID become the owner of the pipes between the process and the caller, so that the
	// process can open them as /dev/stdout. Set them to the host IDs of root in the container's
	// user namespace.
	UID, GID int
	// OutputUntil bounds how long Wait waits for output that another process still holds open after
	// the exec process has ended. Wait then reads until the channel is closed; close it when the
	// container ends. With nil, or with a terminal (a shell's background jobs keep it open), Wait
	// continues only while output keeps coming, for a few seconds at most.
	OutputUntil <-chan struct{}
	// Direct lets Exec start the process without the OCI runtime, which takes 5 to 20 ms of
	// processor time. Exec uses the runtime if the process needs something that only the runtime
	// does, or if the direct start fails. nil: always the runtime.
	//
	// It may be set only for runtimes that StartPipe knows: the process is to have everything that
	// it gets from them.
	Direct *Direct
}

// ExecProcess is a process started by Exec. Call Wait exactly once. All methods are safe for
// concurrent use.
type ExecProcess struct {
	pid   int
	pidfd *os.File
	stdio *stdio
	until <-chan struct{} // OutputUntil, nil for a terminal
	// indirect is the reason why the OCI runtime started the process; nil if it did not.
	indirect error
	// unfreeze is Options.Unfreeze.
	unfreeze func(pids []int) error

	exited chan struct{} // closed when the process is reaped; code and err are set first
	code   int
	err    error
}

// Exec starts a process in a running container and returns once it runs. ctx bounds the start only.
// Exec returns ErrNotFound if the container does not exist and ErrFailedPrecondition if it is not
// running. It returns ErrInvalidArgument without a Process or an Options.Reaper. Other errors contain
// the runtime's message, for example that the command was not found.
func (r *Runtime) Exec(ctx context.Context, a ExecArgs) (*ExecProcess, error) {
	if a.Process == nil || r.options.Reaper == nil {
		return nil, fmt.Errorf("exec in container %s: no process or no reaper: %w", a.ID, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	s, err := newStdio(a)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
	}
	// Reap no child until the new process has an owner: it becomes a child of this process when the
	// runtime exits.
	release := r.options.Reaper.Hold()
	defer release()
	pid, indirect, err := r.startExec(ctx, a, s)
	s.closeChild()
	if err != nil {
		s.close()
		awaitFilter(ctx, indirect)
		return nil, err
	}
	p := &ExecProcess{pid: pid, stdio: s, unfreeze: r.options.Unfreeze, exited: make(chan struct{}), indirect: indirect}
	if !a.Process.Terminal {
		p.until = a.OutputUntil
	}
	owned := r.options.Reaper.Own(pid)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // the PID is still valid, since Hold stops reaping
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

// abandon kills a process whose caller gets an error instead of the process.
//
//nolint:contextcheck // the context of Wait has ended, which makes it kill the process
func (p *ExecProcess) abandon() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(nil)
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// execDir makes the directory of one exec and writes the process description into it.
func (r *Runtime) execDir(p *specs.Process) (string, error) {
	text, err := json.Marshal(p)
	if err != nil {
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

// startExec starts the process and returns its PID: directly if possible, else by the runtime.
// indirect is the reason why the runtime started it.
func (r *Runtime) startExec(ctx context.Context, a ExecArgs, s *stdio) (pid int, indirect, err error) {
	if err := r.makeWorkDir(); err != nil {
		return 0, nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
	}
	pid, indirect = r.startDirect(ctx, a, s)
	if indirect == nil {
		return pid, nil, nil
	}
	if ctx.Err() != nil {
		return 0, nil, fmt.Errorf("exec in container %s: %w", a.ID, ctx.Err())
	}
	if !errors.Is(indirect, errIndirect) {
		klog.FromContext(ctx).V(2).Info("Starting exec by the OCI runtime", "container", a.ID, "reason", indirect.Error())
	}
	dir, err := r.execDir(a.Process)
	if err != nil {
		return 0, nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a leftover is removed by the first Exec after a restart
	if a.Process.Terminal {
		if s.console, err = listenConsole(dir); err != nil {
			return 0, nil, fmt.Errorf("exec in container %s: %w", a.ID, err)
		}
	}
	pid, err = r.startByRuntime(ctx, a, dir, s)
	return pid, indirect, err
}

// startByRuntime runs the runtime's exec command in detached mode and returns the PID of the new
// process.
func (r *Runtime) startByRuntime(ctx context.Context, a ExecArgs, dir string, s *stdio) (int, error) {
	args := append(r.Args(), "--log", logFile, "--log-format", "json",
		"exec", "--detach", "--process", processFile, "--pid-file", pidFile)
	if s.console != nil {
		args = append(args, "--console-socket", consoleFile)
	}
	// A runtime killed at the wrong moment leaves behind a process with an unknown PID. It may
	// therefore run a little past the caller's deadline.
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.options.Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(startGrace, cancel) })()
	cmd := exec.CommandContext(patient, args[0], append(args[1:], a.ID)...)
	cmd.Dir = dir
	cmd.WaitDelay = killDelay
	s.giveTo(cmd)
	err := runScored(cmd, a.Process.OOMScoreAdj)
	if patient.Err() != nil {
		err = context.DeadlineExceeded
	}
	pid, pidErr := readPid(filepath.Join(dir, pidFile))
	if err != nil {
		if pidErr == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // the PID is still valid, since Hold stops reaping
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

// runScored runs the command with the oom_score_adj of the process to start. crun's exec ignores
// the value in the process description. The process would otherwise inherit the daemon's value,
// which protects it from the OOM killer.
func runScored(cmd *exec.Cmd, score *int) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	if score != nil {
		scoreProcess(cmd.Process.Pid, *score)
	}
	return cmd.Wait()
}

// scoreProcess sets a process's oom_score_adj. It ignores errors: the process may have ended, and a
// host that refuses to lower the score has also refused it for the container.
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

// reap waits for the process to end and stores its exit code.
//
//nolint:contextcheck // the process outlives the call
func (p *ExecProcess) reap(r *Runtime, owned func()) {
	defer owned()
	defer close(p.exited)
	status, err := r.options.Reaper.Wait(context.Background(), p.pid)
	p.code, p.err = status.Code, err
}

// Wait waits for the process to end and its output to be copied, and returns the exit code. A
// process killed by a signal gives 128 + the signal's number. If a child of the process still holds
// the output open, Wait waits as ExecArgs.OutputUntil says, reads what was written by then, and
// closes it. If ctx ends before the process does, Wait kills the process and all processes of its
// session, and returns ctx's error.
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
			err = errors.Join(err, fmt.Errorf("process %d did not exit after SIGKILL", p.pid))
		}
		return 0, errors.Join(context.Cause(ctx), err)
	}
	if err := p.stdio.drain(ctx, p.until); err != nil {
		return 0, err
	}
	if p.err != nil {
		return 0, fmt.Errorf("wait for exec process: %w", p.err)
	}
	awaitFilter(ctx, p.indirect)
	return p.code, nil
}

// awaitFilter waits until the seccomp filter has been read that an exec lacked, so that usually
// nothing of the container for reading it exists when the exec returns. It waits for filterWait at
// most.
func awaitFilter(ctx context.Context, indirect error) {
	var unread unreadFilter
	if !errors.As(indirect, &unread) {
		return
	}
	select {
	case <-unread.read:
	case <-time.After(filterWait):
	case <-ctx.Done():
	}
}

// signalLeader sends sig through the pidfd, which cannot refer to a reused PID. It returns ESRCH if
// the process has ended.
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

// kill kills all processes of the session. It stops the leader first and kills it last: while the
// leader exists, the kernel cannot reuse its PID as the ID of another session.
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
		time.Sleep(time.Millisecond) // the next iteration finds processes forked meanwhile
	}
	return fmt.Errorf("session of process %d: %w", p.pid, context.DeadlineExceeded)
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Resize sets the terminal's size in characters. Without a terminal, or after Wait has
// returned, it returns ErrFailedPrecondition.
func (p *ExecProcess) Resize(width, height uint16) error {
	return p.stdio.resize(width, height)
}
