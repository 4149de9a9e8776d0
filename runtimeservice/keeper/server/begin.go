package server

import (
	"context"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// beginInterval is the interval at which the wait for a process looks whether it has ended.
const beginInterval = 100 * time.Millisecond

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
	path, fd := c.startPipe(), -1
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
	}
	if begun && c.rec.Create.StartPipe == wire.StartByReading {
		c.waitForExec(ctx, fd)
	}
	return begun, err
}

// waitForExec waits until the process, which has written to runc's pipe, runs the container's
// program, has ended, or has used up the time of a step. The pipe closes at the exec. Before that,
// the process is still runc's own, and a signal that the program might ignore would end it.
func (c *container) waitForExec(ctx context.Context, fd int) {
	ctx, cancel := context.WithTimeout(ctx, c.rec.timeout())
	defer cancel()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, int(beginInterval.Milliseconds()))
		if err != nil && err != unix.EINTR || fds[0].Revents != 0 {
			return
		}
	}
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
