package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// drainGrace is how long to wait for more output after the process has ended, if another
	// process holds the output open and writes nothing. A child that copies the output, such as
	// tee(1), can be throttled by the CPU controller for most of a period (100 ms by default), and
	// more than once before it writes.
	drainGrace = 500 * time.Millisecond
	// drainLimit bounds the sum of these waits, since a child can write for ever.
	drainLimit = 5 * time.Second
	// drainWrite bounds the writing of the last output after the caller's context has ended.
	drainWrite = time.Second
)

// consoleTimeout bounds the wait for the terminal's descriptor after the runtime has exited.
const consoleTimeout = 10 * time.Second

// stdio is the standard streams of an exec process: the child's ends, this process's ends, and the
// goroutines that copy between them and the caller.
type stdio struct {
	child  [3]*os.File // passed to the runtime; nil means /dev/null
	ours   []*os.File  // elements of child that this process has to close
	stdin  io.Reader   // copied to input
	input  *os.File
	output []*output

	console *net.UnixListener // receives the terminal's descriptor
	stdout  io.Writer         // receives the terminal's output

	mu  sync.Mutex // guards tty
	tty *os.File
}

// output is one stream from the process to the caller.
type output struct {
	from *os.File
	to   io.Writer
	read atomic.Int64 // bytes so far
	done chan struct{}
	err  error // valid after done
}

func newStdio(a ExecArgs) (*stdio, error) {
	s := &stdio{}
	if a.Process.Terminal { // its listener is in the directory of the runtime's run
		s.stdin, s.stdout = a.Stdin, a.Stdout
		return s, nil
	}
	if err := s.pipes(a); err != nil {
		s.close()
		s.closeChild()
		return nil, err
	}
	return s, nil
}

// pipes makes the pipes that the exec needs.
func (s *stdio) pipes(a ExecArgs) error {
	if f, ok := a.Stdin.(*os.File); ok {
		s.child[0] = f
	} else if a.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.child[0], s.input, s.stdin = r, w, a.Stdin
		s.ours = append(s.ours, r)
		if err := a.own(r); err != nil {
			return err
		}
	}
	for i, to := range []io.Writer{a.Stdout, a.Stderr} {
		if f, ok := to.(*os.File); ok {
			s.child[i+1] = f
		} else if to != nil {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			s.child[i+1] = w
			s.ours = append(s.ours, w)
			s.output = append(s.output, &output{from: r, to: to, done: make(chan struct{})})
			if err := a.own(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// own changes the owner of a pipe, which both ends share, to root in the container's user
// namespace.
func (a ExecArgs) own(end *os.File) error {
	if a.UID == 0 && a.GID == 0 {
		return nil
	}
	return end.Chown(a.UID, a.GID)
}

// owned returns which of the child's ends get the process's user as their owner: bit n for stream n.
// Those are the pipes, not files that the caller has given.
func (s *stdio) owned() (mask uint64) {
	for n, end := range s.child {
		if end != nil && slices.Contains(s.ours, end) {
			mask |= 1 << n
		}
	}
	return mask
}

// giveTo sets the child's ends as the command's streams. Streams without one stay /dev/null.
func (s *stdio) giveTo(cmd *exec.Cmd) {
	if s.child[0] != nil {
		cmd.Stdin = s.child[0]
	}
	if s.child[1] != nil {
		cmd.Stdout = s.child[1]
	}
	if s.child[2] != nil {
		cmd.Stderr = s.child[2]
	}
}

// listenConsole listens for the terminal's descriptor. It uses a path below /proc/self/fd, since
// the directory's own path may be too long for a socket address.
func listenConsole(dir string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	name := filepath.Join("/proc/self/fd", fmt.Sprint(d.Fd()), consoleFile)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the directory is removed as a whole
	return l, nil
}

// acceptConsole receives the terminal that the runtime sent before it exited.
func (s *stdio) acceptConsole(ctx context.Context) error {
	deadline := time.Now().Add(consoleTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.console.SetDeadline(deadline); err != nil {
		return err
	}
	conn, err := s.console.AcceptUnix()
	if err != nil {
		return fmt.Errorf("accept terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	f, err := receiveFile(conn)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	s.mu.Lock()
	s.tty = f
	s.mu.Unlock()
	to := s.stdout
	if to == nil {
		to = io.Discard
	}
	s.output = append(s.output, &output{from: f, to: to, done: make(chan struct{})})
	s.input = f
	return nil
}

// receiveFile receives one descriptor (unix(7), SCM_RIGHTS). It returns EMFILE if this process can open
// no more.
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, flags, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
	}
	if flags&unix.MSG_CTRUNC != 0 && n == 0 { // no descriptor is free: the kernel drops the message
		return nil, os.NewSyscallError("recvmsg", unix.EMFILE)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), errdefs.ErrInternal)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), errdefs.ErrInternal)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that reads can have a deadline
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// start starts the copying goroutines.
func (s *stdio) start() {
	for _, o := range s.output {
		go o.copy()
	}
	if s.input == nil || s.stdin == nil {
		return
	}
	go func() {
		_, _ = io.Copy(s.input, s.stdin) // an error means that one side is closed
		if s.console == nil {
			_ = s.input.Close()
		}
	}()
}

// copy copies until EOF. After drain has set a deadline, it copies what is in the pipe at that time
// and returns.
func (o *output) copy() {
	defer close(o.done)
	_, err := io.Copy(o.to, counter{o})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = o.rest()
	}
	if !errors.Is(err, unix.EIO) && !errors.Is(err, os.ErrClosed) { // EIO is the end of a terminal
		o.err = err
	}
	_ = o.from.SetReadDeadline(time.Time{})
}

// terminalHolds is more than the kernel buffers in a terminal. The kernel reports only the part of
// the buffer that is ready to be read.
const terminalHolds = 64 << 10

// rest copies what is in the pipe or terminal now and little more, since a surviving child may
// write for ever. It uses non-blocking reads instead of a deadline, which could pass during a slow
// write.
func (o *output) rest() error {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return err
	}
	pending, err := inPipe(raw)
	if err != nil {
		return err
	}
	buffer := make([]byte, 32<<10)
	for pending = max(pending, terminalHolds); pending > 0; {
		n, err := readNow(raw, buffer[:min(pending, len(buffer))])
		if err != nil || n == 0 {
			return err
		}
		if _, err := o.to.Write(buffer[:n]); err != nil {
			return err
		}
		pending -= n
	}
	return nil
}

// readNow reads what is available without blocking. It returns 0 and no error if there is nothing.
func readNow(raw syscall.RawConn, to []byte) (n int, err error) {
	cerr := raw.Control(func(fd uintptr) {
		for n, err = -1, unix.EINTR; err == unix.EINTR; {
			n, err = unix.Read(int(fd), to)
		}
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err == unix.EAGAIN:
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	}
	return n, nil
}

// inPipe returns the number of bytes that can be read.
func inPipe(raw syscall.RawConn) (n int, err error) {
	cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		err = os.NewSyscallError("ioctl FIONREAD", err)
	}
	return n, errors.Join(cerr, err)
}

// counter counts the bytes read from an output. It also hides *os.File's WriteTo, which does not
// stop at a deadline on every kernel.
type counter struct{ o *output }

func (c counter) Read(p []byte) (int, error) {
	n, err := c.o.from.Read(p)
	c.o.read.Add(int64(n))
	return n, err
}

// drain waits until an ended process's output is copied. If another process holds the output open,
// drain waits until the channel is closed. After that, or at once if the channel is nil, it waits
// while output keeps coming, up to drainLimit. When ctx ends, it copies only what is available
// then.
func (s *stdio) drain(ctx context.Context, until <-chan struct{}) error {
	copied := make(chan struct{})
	go func() { // ends at the latest when the outputs are closed
		defer close(copied)
		for _, o := range s.output {
			<-o.done
		}
	}()
	if until != nil {
		select {
		case <-copied:
		case <-until:
		case <-ctx.Done():
		}
	}
	s.awaitSilence(ctx, copied)
	for _, o := range s.output {
		if err := o.from.SetReadDeadline(time.Now()); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("drain output: %w", err)
		}
	}
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drainWrite, cancel) })()
	select {
	case <-copied:
	case <-late.Done():
		return fmt.Errorf("copy output: %w", context.Cause(ctx))
	}
	for _, o := range s.output {
		if o.err != nil {
			return fmt.Errorf("copy output: %w", o.err)
		}
	}
	return nil
}

// awaitSilence waits until all output is copied or none has come for drainGrace.
func (s *stdio) awaitSilence(ctx context.Context, copied <-chan struct{}) {
	limit := time.Now().Add(drainLimit)
	for seen := s.read(); time.Now().Before(limit); {
		select {
		case <-copied:
			return
		case <-ctx.Done():
			return
		case <-time.After(drainGrace):
		}
		now := s.read()
		if now == seen {
			return
		}
		seen = now
	}
}

// read returns the number of bytes of output read so far.
func (s *stdio) read() (n int64) {
	for _, o := range s.output {
		n += o.read.Load()
	}
	return n
}

// closeChild closes this process's copies of the child's ends.
func (s *stdio) closeChild() {
	for _, f := range s.ours {
		_ = f.Close()
	}
	s.ours = nil
}

// close closes all of this process's ends and so stops the copying.
func (s *stdio) close() {
	for _, o := range s.output {
		_ = o.from.Close()
	}
	if s.input != nil {
		_ = s.input.Close()
	}
	if c, ok := s.stdin.(io.Closer); ok {
		_ = c.Close()
	}
	if s.console != nil {
		_ = s.console.Close()
	}
	s.mu.Lock()
	s.tty = nil
	s.mu.Unlock()
}

func (s *stdio) resize(width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tty == nil {
		return fmt.Errorf("resize terminal: no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	raw, err := s.tty.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	})
	if err = errors.Join(err, ioctl); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
