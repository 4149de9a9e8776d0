package server

import (
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// beginTime bounds the wait for a process that has not reached its pipe yet.
const beginTime = time.Second

// begin starts the process of a created container without the runtime, where Create.StartPipe says
// how. The process waits at a pipe in the container's directory below the runtime's root. Its
// runtime reports it as created as long as the pipe exists, so that begin removes it, as the
// runtime's start does. begin returns false if the process does not respond as expected; the
// runtime's start is the fallback. done must be called after that: until then, the pipe keeps what
// the process has written meanwhile. The caller holds c.op.
func (s *Server) begin(c *container) (begun bool, done func()) {
	flags := unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOFOLLOW
	switch c.rec.Create.StartPipe {
	case wire.StartByReading:
		flags |= unix.O_RDONLY
	case wire.StartByWriting:
		flags |= unix.O_WRONLY // without a reader, the open fails
	default:
		return false, func() {}
	}
	path, fd := c.startPipe(), -1
	err := s.spare.lend(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	})
	if err != nil {
		return false, func() {}
	}
	done = func() { _ = unix.Close(fd) }
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, done
	}
	if c.rec.Create.StartPipe == wire.StartByReading {
		begun = c.readStart(fd)
	} else {
		n, err := unix.Write(fd, []byte{0})
		begun = n == 1 && err == nil
	}
	if begun {
		_ = unix.Unlink(path)
	}
	return begun, done
}

// readStart waits until the process has opened the pipe and written to it. That is all that it
// waits for.
func (c *container) readStart(fd int) bool {
	c.mu.Lock()
	pidfd := c.pidfd
	c.mu.Unlock()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(beginTime); ; {
		left := time.Until(end)
		n, err := unix.Poll(fds, int(max(left, 0).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil || fds[0].Revents&unix.POLLIN == 0 {
			return false
		}
		n, err = unix.Read(fd, make([]byte, 1))
		return n == 1 && err == nil
	}
}
