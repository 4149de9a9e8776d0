package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// watcher waits for the exits of containers with one epoll set of pidfds. The Go runtime polls the
// set, so waiting takes no thread.
type watcher struct {
	poll  *os.File
	raw   syscall.RawConn
	ended func(*container)

	mu   sync.Mutex // guards byFD
	byFD map[int32]*container
}

func newWatcher(ended func(*container)) (*watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	_ = unix.SetNonblock(fd, true)
	w := &watcher{poll: os.NewFile(uintptr(fd), "pidfds"), ended: ended, byFD: map[int32]*container{}}
	if w.raw, err = w.poll.SyscallConn(); err != nil {
		_ = w.poll.Close()
		return nil, err
	}
	return w, nil
}

func (w *watcher) close() { _ = w.poll.Close() }

// run calls ended once for each container whose process exits, until close.
func (w *watcher) run() {
	events := make([]unix.EpollEvent, 16)
	for {
		n := 0
		err := w.raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			if c := w.forget(int(e.Fd)); c != nil {
				w.ended(c)
			}
		}
	}
}

func (w *watcher) add(pidfd int, c *container) error {
	w.mu.Lock()
	w.byFD[int32(pidfd)] = c
	w.mu.Unlock()
	var err error
	cerr := w.raw.Control(func(fd uintptr) {
		e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(pidfd)}
		err = unix.EpollCtl(int(fd), unix.EPOLL_CTL_ADD, pidfd, &e)
	})
	if cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("watch container %s: %w", c.id(), err)
	}
	return nil
}

// forget removes a pidfd and returns its container, or nil if it was removed before.
func (w *watcher) forget(pidfd int) *container {
	w.mu.Lock()
	c := w.byFD[int32(pidfd)]
	delete(w.byFD, int32(pidfd))
	w.mu.Unlock()
	if c != nil {
		_ = w.raw.Control(func(fd uintptr) { _ = unix.EpollCtl(int(fd), unix.EPOLL_CTL_DEL, pidfd, nil) })
	}
	return c
}

// ended handles the exit of a container's init.
func (s *Server) ended(c *container) {
	c.mu.Lock()
	rec, child, pidfd, io := c.rec, c.child, c.pidfd, c.io
	c.mu.Unlock()
	exit := wire.Exit{At: time.Now()}
	// The cgroup is read before anything can remove it. The read opens one file at a time and
	// happens once, so the reserve is used in any case.
	s.spare.spend(func() { exit.OOMKilled = s.kills.end(rec.Cgroup, rec.OOMKills) })
	status, err := exitStatus(rec.Pid, pidfd, child)
	exit.Code, exit.Signal = status.Code, status.Signal
	if err != nil {
		exit.Code, exit.Reason = 255, err.Error()
	}
	if io != nil {
		io.drain(context.Background())
	}
	s.conclude(c, exit)
}

// conclude records an exit and sends it to the clients.
//
//nolint:contextcheck // an exit is not part of a request
func (s *Server) conclude(c *container, exit wire.Exit) {
	if err := s.spare.lend(func() error { return writeFile(s.path(c.id(), exitName), exit) }); err != nil {
		s.logf("container %s: record exit: %v", c.id(), err)
	}
	c.mu.Lock()
	if c.exit != nil {
		c.mu.Unlock()
		return
	}
	c.exit = &exit
	c.orphan = false
	c.release()
	io := c.io
	c.mu.Unlock()
	close(c.gone)
	if io != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = s.pump.call(ctx, io.part)
		cancel()
	}
	s.push(wire.OpExit, c.state(), nil)
}

// unknownAfter is how long the keeper waits for the exit status of a process that is not its child.
const unknownAfter = 5 * time.Second

// exitStatus returns how a dead process ended. A child is collected. The children of an earlier
// keeper have another parent now: the status comes from the zombie while that parent has not
// collected it. After that, from Linux 6.15 on, the kernel reports it for a pidfd opened earlier.
func exitStatus(pid, pidfd int, child bool) (reaper.Status, error) {
	if child {
		return collect(pid)
	}
	for end := time.Now().Add(unknownAfter); ; time.Sleep(10 * time.Millisecond) {
		if st, err := readStat(pid); err == nil && st.state == 'Z' && unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil {
			return reaper.StatusOf(unix.WaitStatus(st.exitCode)), nil
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(pidfd, &info)
		switch {
		case err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0:
			return reaper.StatusOf(unix.WaitStatus(info.Exit_code)), nil
		case err == nil:
			err = errors.New("no exit code")
		}
		if time.Now().After(end) {
			return reaper.Status{}, fmt.Errorf("exit code unknown: the process's keeper died, and it has another parent now (pidfd info: %w)", err)
		}
	}
}

func collect(pid int) (reaper.Status, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return reaper.Status{}, fmt.Errorf("exit code unknown: wait for process %d: %w", pid, err)
		}
		return reaper.StatusOf(ws), nil
	}
}
