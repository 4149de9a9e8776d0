package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FDs are descriptors by name. The holder of the map owns them. Like any map, it must not be used
// concurrently while it changes.
type FDs map[string]int

// Close closes every descriptor.
func (f FDs) Close() {
	for _, fd := range f {
		_ = unix.Close(fd)
	}
}

// Take removes a descriptor from the map and returns it, or -1 if there is none.
func (f FDs) Take(name string) int {
	fd, ok := f[name]
	if !ok {
		return -1
	}
	delete(f, name)
	return fd
}

// Dup duplicates every descriptor; the copies are close-on-exec. If the process or the machine has
// no free descriptor, Exhausted returns true for the error, and no copy is left.
func (f FDs) Dup() (FDs, error) {
	out := make(FDs, len(f))
	for name, fd := range f {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("duplicate %s: %w", name, err)
		}
		out[name] = n
	}
	return out, nil
}

// Conn is one end of a connection. Its methods may be called concurrently, except that only one
// goroutine may call Receive.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	mu sync.Mutex // guards sending
}

// NewConn takes ownership of a connected seqpacket socket. It closes fd on error.
func NewConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set socket non-blocking: %w", err)
	}
	file := os.NewFile(uintptr(fd), "keeper.sock")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Conn{file: file, raw: raw}, nil
}

// Close closes the socket and wakes goroutines blocked in Send or Receive.
func (c *Conn) Close() error { return c.file.Close() }

// SetWriteDeadline bounds current and later calls of Send; the zero time means no bound. It
// returns an error after Close.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }

// Control calls f with the descriptor, which is valid only during the call. It returns an
// error, without calling f, after Close.
func (c *Conn) Control(f func(fd int)) error {
	return c.raw.Control(func(fd uintptr) { f(int(fd)) })
}

// Send sends one packet made by Encode with its descriptors, in the order of Message.FDs. The
// descriptors remain the caller's. It waits while the socket is full.
//
// Errors wrap os.ErrDeadlineExceeded after the deadline of SetWriteDeadline, os.ErrClosed after
// Close, and unix.EPIPE or unix.ECONNRESET if the peer has closed the connection.
func (c *Conn) Send(packet []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var serr error
	err := c.raw.Write(func(fd uintptr) bool {
		for {
			serr = unix.Sendmsg(int(fd), packet, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				break
			}
		}
		return serr != unix.EAGAIN && serr != unix.ETOOMANYREFS
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("send packet: %w", err)
	case err != nil: // Close was faster
		return fmt.Errorf("send packet: %w: %w", os.ErrClosed, err)
	case serr != nil:
		return fmt.Errorf("send packet: %w", serr)
	}
	return nil
}

// Receive returns the next message and its descriptors, which the caller then owns. It returns
// io.EOF when the peer has closed the connection, and an error with os.ErrClosed after Close. If
// this process has no free numbers for the descriptors, it returns the message without them and
// ErrDescriptors, and the connection remains usable. After any other error it must be closed. s may
// be nil.
func (c *Conn) Receive(s *Section) (Message, FDs, error) {
	var packet []byte
	var fds []int
	var cut bool
	var rerr error
	err := c.raw.Read(func(fd uintptr) bool {
		s.enter()
		defer s.leave()
		packet, fds, cut, rerr = receive(int(fd))
		if errors.Is(rerr, unix.EAGAIN) {
			return false
		}
		if rerr == nil {
			s.got()
		}
		return true
	})
	if err != nil {
		return Message{}, nil, fmt.Errorf("receive packet: %w: %w", os.ErrClosed, err)
	}
	if rerr != nil {
		return Message{}, nil, rerr
	}
	m, named, err := name(packet, fds, cut)
	if err != nil {
		s.drop()
	}
	return m, named, err
}

// Section lets a connection's owner track which packets were taken off a socket. Receive calls
// Enter and Leave around each attempt, Got in between for every packet, and Drop for a packet that
// cannot be decoded. A nil Section and nil fields do nothing.
type Section struct{ Enter, Leave, Got, Drop func() }

func (s *Section) enter() { s.call(func() func() { return s.Enter }) }
func (s *Section) leave() { s.call(func() func() { return s.Leave }) }
func (s *Section) got()   { s.call(func() func() { return s.Got }) }
func (s *Section) drop()  { s.call(func() func() { return s.Drop }) }

func (s *Section) call(which func() func()) {
	if s == nil {
		return
	}
	if f := which(); f != nil {
		f()
	}
}

// receive returns the next packet and its descriptors. cut says that the kernel has dropped some.
func receive(fd int) (data []byte, fds []int, cut bool, err error) {
	size, err := peek(fd)
	if err != nil {
		return nil, nil, false, err
	}
	packet := make([]byte, size+1)
	oob := make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, oobn, flags, _, err := unix.Recvmsg(fd, packet, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, nil, false, err
	}
	fds, err = rights(oob[:oobn])
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = errors.New("receive packet: too large")
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, false, err
	}
	return packet[:n], fds, flags&unix.MSG_CTRUNC != 0, nil
}

// peek returns the size of the next packet, so that the buffer is allocated only when a packet
// arrives.
func peek(fd int) (int, error) {
	var probe [1]byte
	for {
		n, _, _, _, err := unix.RecvmsgBuffers(fd, [][]byte{probe[:]}, nil, unix.MSG_DONTWAIT|unix.MSG_PEEK|unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n > MaxMessage:
			return 0, fmt.Errorf("receive packet: %d bytes, at most %d allowed", n, MaxMessage)
		}
		return n, nil
	}
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func name(packet []byte, fds []int, cut bool) (Message, FDs, error) {
	m, err := Decode(packet)
	if err == nil && cut { // Decode allows no more than there is room for
		closeAll(fds)
		return m, nil, ErrDescriptors
	}
	if err == nil && len(m.FDs) != len(fds) {
		err = fmt.Errorf("decode message: %d descriptors named, %d received", len(m.FDs), len(fds))
	}
	named := make(FDs, len(fds))
	for i := 0; err == nil && i < len(fds); i++ {
		if _, twice := named[m.FDs[i]]; twice {
			err = fmt.Errorf("decode message: descriptor %.32q named twice", m.FDs[i])
		}
		named[m.FDs[i]] = fds[i]
	}
	if err != nil {
		closeAll(fds)
		return Message{}, nil, err
	}
	return m, named, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// SocketName is the name of the socket in the keeper's directory.
const SocketName = "keeper.sock"

// Dial connects to the keeper in directory dir. If no keeper listens, Absent returns true for the
// error.
func Dial(dir string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	err = at(dir, func(path string) error {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(path, SocketName)})
	})
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("dial keeper: %w", err)
	}
	if err := CheckPeer(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return NewConn(fd)
}

// Absent reports whether an error of Dial means that no keeper listens.
func Absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// Listen makes the socket in dir with mode 0600, replacing a stale one, and returns its descriptor.
// The caller must hold the directory's lock. Errors are those of the system calls.
func Listen(dir string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	err = at(dir, func(path string) error {
		name := filepath.Join(path, SocketName)
		if err := unix.Unlink(name); err != nil && err != unix.ENOENT {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			return err
		}
		if err := unix.Chmod(name, 0o600); err != nil {
			return err
		}
		return unix.Listen(fd, 64)
	})
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen in %s: %w", dir, err)
	}
	return fd, nil
}

// CheckPeer returns an error unless the peer runs as root or as this process's user.
func CheckPeer(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("refuse peer with uid %d", cred.Uid)
	}
	return nil
}

// at calls f with a short path for dir, since socket addresses are limited to 107 bytes.
func at(dir string, f func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return f("/proc/self/fd/" + strconv.Itoa(fd))
}

// FileID identifies a version of a program file by device, inode, size and modification time. The
// error is that of stat(2).
func FileID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	return fmt.Sprintf("%d:%d:%d:%d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec), nil
}
