package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// console is the socket on which the OCI runtime sends the pty master of a container's terminal.
type console struct {
	listener, dir int
	file          string
}

// newConsole listens in dir.
func newConsole(dir string) (*console, error) {
	c := &console{listener: -1, file: filepath.Join(dir, "console")}
	var err error
	if c.dir, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	c.listener, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(c.listener, &unix.SockaddrUnix{Name: c.path()})
	}
	if err == nil {
		err = unix.Listen(c.listener, 1)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("listen for console in %s: %w", dir, err)
	}
	return c, nil
}

// path returns a short path of the socket for this process and its children. The real path may be
// longer than a socket address allows.
func (c *console) path() string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(c.dir) + "/console"
}

func (c *console) close() {
	if c.listener >= 0 {
		_ = unix.Close(c.listener)
	}
	_ = unix.Close(c.dir)
	_ = os.Remove(c.file)
}

// receive returns the pty master. The runtime sends it before it exits, so there is little to wait
// for.
func (c *console) receive(timeout time.Duration) (int, error) {
	end := time.Now().Add(timeout)
	if err := readable(c.listener, end); err != nil {
		return -1, fmt.Errorf("accept console: %w", err)
	}
	conn, _, err := unix.Accept4(c.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("accept console: %w", err)
	}
	defer func() { _ = unix.Close(conn) }()
	if err := readable(conn, end); err != nil {
		return -1, fmt.Errorf("receive console: %w", err)
	}
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, flags, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, fmt.Errorf("receive console: %w", err)
	}
	if flags&unix.MSG_CTRUNC != 0 && n == 0 {
		return -1, fmt.Errorf("receive console: %w", wire.ErrDescriptors)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("receive console: %d control messages: %w", len(msgs), orInvalid(err))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("receive console: %d descriptors: %w", len(fds), orInvalid(err))
	}
	return fds[0], nil
}

// readable waits until fd can be read. It returns ETIMEDOUT at end.
func readable(fd int, end time.Time) error {
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			return nil
		case left == 0:
			return unix.ETIMEDOUT
		}
	}
}
