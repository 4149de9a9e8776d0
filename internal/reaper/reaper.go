// Package reaper reaps the dead children of a child subreaper process, except those that the
// process itself waits for.
//
// A subreaper (prctl PR_SET_CHILD_SUBREAPER, Linux 3.4) inherits all orphans among its descendants.
// Waiting for any child would reap the orphans, but also the children of os/exec, whose Wait would
// then fail. So the reaper first peeks at the next dead child (waitid WNOWAIT), and reaps it only
// if it has no owner.
//
// A child has an owner if [Reaper.Start] started it, while [Reaper.Wait] waits for it, or after
// [Reaper.Own]. A process whose other packages use os/exec directly sets Options.Grace: a dead
// child without an owner is then left for that time, so that os/exec can wait for it.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options are the options of a Reaper. The zero value suits a process that starts every child by
// Start.
type Options struct {
	// Grace is the time after which a dead child without an owner is reaped.
	Grace time.Duration
}

// Status is the outcome of a process.
type Status struct {
	// Code is the exit code, or 128+Signal.
	Code int
	// Signal that killed the process, or 0.
	Signal int
}

// StatusOf converts a wait status.
func StatusOf(ws unix.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return Status{Code: ws.ExitStatus()}
}

// Reaper reaps orphans until Close. Its methods may be called concurrently.
type Reaper struct {
	grace   time.Duration
	signals chan os.Signal
	look    chan struct{}
	stop    chan struct{}
	done    chan struct{}

	mu    sync.Mutex // guards the fields below
	holds int
	owned map[int]int // number of owners by pid
	seen  map[int]time.Time
}

// New makes the calling process a child subreaper and starts reaping. It fails only if the kernel
// rejects that.
func New(o Options) (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become child subreaper: %w", err)
	}
	r := &Reaper{
		grace:   o.Grace,
		signals: make(chan os.Signal, 1),
		look:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		owned:   map[int]int{},
		seen:    map[int]time.Time{},
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	go r.run()
	r.wake()
	return r, nil
}

// Close stops reaping. The process stays a subreaper. Close must be called once.
func (r *Reaper) Close() {
	signal.Stop(r.signals)
	close(r.stop)
	<-r.done
}

// Start starts cmd as an owned child. The caller must call release after cmd.Wait. The error is
// that of cmd.Start.
func (r *Reaper) Start(cmd *exec.Cmd) (release func(), err error) {
	defer r.Hold()()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return r.Own(cmd.Process.Pid), nil
}

// Own prevents the child pid from being reaped until release is called.
func (r *Reaper) Own(pid int) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owned[pid]++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		if r.owned[pid]--; r.owned[pid] == 0 {
			delete(r.owned, pid)
		}
		r.mu.Unlock()
		r.wake()
	})
}

// Hold prevents all children from being reaped until release is called. It is for a helper that
// forks a process whose pid is not known yet.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		r.holds--
		r.mu.Unlock()
		r.wake()
	})
}

// Wait waits for the child or inherited orphan pid, reaps it and returns its outcome. If pid is not
// a child of this process, the error wraps unix.ECHILD; if ctx ends first, it wraps ctx.Err().
func (r *Reaper) Wait(ctx context.Context, pid int) (Status, error) {
	defer r.Own(pid)()
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return Status{}, fmt.Errorf("wait for process %d: %w", pid, notChild(err))
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = file.Close() }()
	raw, err := file.SyscallConn()
	if err != nil {
		return Status{}, fmt.Errorf("wait for process %d: %w", pid, err)
	}
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })()
	var ws unix.WaitStatus
	var werr error
	err = raw.Read(func(uintptr) bool {
		var got int
		got, werr = wait4(pid, &ws)
		return got == pid || werr != nil
	})
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err = errors.Join(err, werr); err != nil {
		return Status{}, fmt.Errorf("wait for process %d: %w", pid, err)
	}
	return StatusOf(ws), nil
}

func notChild(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return unix.ECHILD
	}
	return err
}

func wait4(pid int, ws *unix.WaitStatus) (int, error) {
	for {
		got, err := unix.Wait4(pid, ws, unix.WNOHANG, nil)
		if err != unix.EINTR {
			return got, err
		}
	}
}

func (r *Reaper) wake() {
	select {
	case r.look <- struct{}{}:
	default:
	}
}

func (r *Reaper) run() {
	defer close(r.done)
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-r.signals:
		case <-r.look:
		case <-again.C:
		}
		if wait := r.collect(); wait > 0 {
			again.Reset(wait)
		}
	}
}

// collect reaps dead children without an owner. It returns when to try again; 0 means at the next
// wake-up.
func (r *Reaper) collect() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds > 0 {
		return 0
	}
	if r.grace > 0 {
		return r.collectLate()
	}
	// waitid returns the same dead child until it is reaped, so one with an owner hides the others.
	// Its release wakes the reaper.
	for {
		pid := peek()
		if pid <= 0 {
			return 0
		}
		if r.owned[pid] > 0 {
			return time.Second
		}
		if err := reap(pid); err != nil {
			return time.Second
		}
	}
}

// collectLate is collect with a grace period for each dead child. r.mu is held.
func (r *Reaper) collectLate() (again time.Duration) {
	if peek() <= 0 {
		clear(r.seen)
		return 0
	}
	seen := map[int]time.Time{}
	for _, pid := range dead() {
		if r.owned[pid] > 0 {
			continue
		}
		since, ok := r.seen[pid]
		if !ok {
			since = time.Now()
		}
		left := r.grace - time.Since(since)
		if left <= 0 && reap(pid) == nil {
			continue
		}
		seen[pid] = since
		if again == 0 || left < again {
			again = max(left, 10*time.Millisecond)
		}
	}
	r.seen = seen
	return again
}

func reap(pid int) error {
	var ws unix.WaitStatus
	got, err := wait4(pid, &ws)
	if err == nil && got != pid {
		err = unix.EAGAIN
	}
	return err
}

// dead returns the zombies among the children of all threads.
func dead() []int {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	var pids []int
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has exited
		}
		for _, field := range strings.Fields(string(data)) {
			if stat, err := os.ReadFile("/proc/" + field + "/stat"); err == nil && isZombie(string(stat)) {
				pid, _ := strconv.Atoi(field)
				pids = append(pids, pid)
			}
		}
	}
	if pids == nil {
		// Without CONFIG_PROC_CHILDREN, only one child at a time is visible.
		if pid := peek(); pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isZombie reads the third field of /proc/PID/stat, after a name that may
// contain anything.
func isZombie(stat string) bool {
	i := strings.LastIndex(stat, ") ")
	return i >= 0 && strings.HasPrefix(stat[i+2:], "Z")
}

// peek returns the pid of a dead child without reaping it; 0 if there is none.
func peek() int {
	// The layout of siginfo_t for SIGCHLD on 64-bit Linux, which x/sys keeps
	// opaque.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [128 - 20]byte
	}
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		return int(info.pid)
	}
}
