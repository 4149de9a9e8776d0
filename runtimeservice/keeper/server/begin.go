package server

import (
	"context"
	"fmt"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

const (
	// beginInterval is the interval at which the wait for a process looks whether it has ended.
	beginInterval = 100 * time.Millisecond
	// execTime is how long start waits for the exec of a process that runs no hooks. The exec takes
	// less than a millisecond on an idle node, and more with a small CPU quota. If the container's
	// program is the same file as the runtime's own program, the exec does not show.
	execTime = 5 * time.Second
)

// begin starts the process of a created container without the runtime, where Create.StartPipe says
// how. The process waits at a pipe in the container's directory below the runtime's root. Its
// runtime reports it as created as long as the pipe exists, so that begin removes it, as the
// runtime's start does. If begin returns false without an error, the runtime's start is the
// fallback: the process is not at such a pipe, or it has ended. The caller holds c.op.
func (s *Server) begin(ctx context.Context, c *container) (begun bool, err error) {
	flags := unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOFOLLOW
	switch c.rec.Create.StartPipe {
	case wire.StartByReading:
		flags |= unix.O_RDONLY
	case wire.StartByWriting:
		flags |= unix.O_WRONLY // without a reader, the open fails
	default:
		return false, nil
	}
	path, fd, own := c.startPipe(), -1, c.program()
	if s.spare.lend(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	}) != nil {
		return false, nil
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, nil
	}
	if c.rec.Create.StartPipe == wire.StartByReading {
		begun, err = c.readStart(ctx, fd)
	} else {
		n, err := unix.Write(fd, []byte{0})
		begun = n == 1 && err == nil
	}
	if begun {
		_ = unix.Unlink(path)
		c.waitForExec(ctx, fd, own)
	}
	return begun, err
}

// waitForExec waits until the process, which has passed the pipe, runs the container's program, has
// ended, or has used up its time. own is the runtime's own program. Until then, a signal that the
// container's program might ignore would end the process.
//
// runc's process holds the pipe open while it runs startContainer hooks, and closes it shortly
// before the exec or by it. crun's process does not show that it runs hooks.
func (c *container) waitForExec(ctx context.Context, fd int, own programID) {
	hooks, cancel := context.WithTimeout(ctx, c.rec.timeout())
	defer cancel()
	for open := c.rec.Create.StartPipe == wire.StartByReading; open && hooks.Err() == nil; {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, int(beginInterval.Milliseconds()))
		open = fds[0].Revents == 0 && (err == nil || err == unix.EINTR)
	}
	ctx, cancel = context.WithTimeout(ctx, execTime)
	defer cancel()
	for pause := 20 * time.Microsecond; ctx.Err() == nil && own.known() && c.program() == own; pause = min(2*pause, 5*time.Millisecond) {
		time.Sleep(pause)
	}
}

// programID identifies the file that a process executes. It is zero for a process that has ended.
type programID struct{ device, inode uint64 }

func (p programID) known() bool { return p.inode != 0 }

func (c *container) program() programID {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/exe", c.state().Pid), &st) != nil {
		return programID{}
	}
	return programID{uint64(st.Dev), st.Ino}
}

// readStart waits until the process has opened the pipe and written to it. It returns false if the
// process ends before. The wait ends only with the process or its time: once the pipe has a reader,
// a process that arrives late passes it, and the runtime's start would wait for the process for
// ever.
func (c *container) readStart(ctx context.Context, fd int) (bool, error) {
	timeout := c.rec.timeout()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.mu.Lock()
	pidfd := c.pidfd // -1 for an orphan whose process is gone
	c.mu.Unlock()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, int(beginInterval.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return false, wire.Errorf(wire.CodeInternal, "start container %s: wait for its process: %v", c.id(), err)
		}
		ended := fds[0].Revents&unix.POLLHUP != 0 || fds[1].Revents != 0
		select {
		case <-c.gone:
			ended = true
		default:
		}
		// The process may have written, and ended, after the poll.
		if n, err := unix.Read(fd, make([]byte, 1)); n == 1 && err == nil {
			return true, nil
		}
		if ended {
			return false, nil
		}
		if ctx.Err() != nil {
			return false, wire.Errorf(wire.CodeDeadline, "start container %s: its process did not come to %s within %v: %v", c.id(), execFifo, timeout, ctx.Err())
		}
	}
}
