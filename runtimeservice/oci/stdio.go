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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// drainGrace is how long after the end of a process more of its output is waited for, when
	// something else holds it open and nothing comes. A child that copies the output, such as
	// tee(1), can be throttled for most of a period of the CPU controller, 100 ms by default, and
	// more than once before it writes.
	drainGrace = 500 * time.Millisecond
	// drainLimit bounds all such waits of one process, since a child can write for ever.
	drainLimit = 5 * time.Second
	// drainWrite is how long the last of the output may take to be written when the caller has
	// given up.
	drainWrite = time.Second
)

// consoleTimeout is how long a runtime that has exited may take to have sent
// the terminal.
const consoleTimeout = 10 * time.Second

// stdio is the standard streams of an exec process: the child's ends, our
// ends and what copies between them and the caller.
type stdio struct {
	child  [3]*os.File // given to the runtime; nil is /dev/null
	ours   []*os.File  // those of child that we have to close
	stdin  io.Reader   // copied to input
	input  *os.File
	output []*output

	console *net.UnixListener // where the terminal will come from
	stdout  io.Writer         // of the terminal

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

func newStdio(a ExecArgs, dir string) (*stdio, error) {
	s := &stdio{}
	var err error
	if a.Process.Terminal {
		s.stdin, s.stdout = a.Stdin, a.Stdout
		s.console, err = listenConsole(dir)
	} else {
		err = s.pipes(a)
	}
	if err != nil {
		s.close()
		s.closeChild()
		return nil, err
	}
	return s, nil
}

// pipes makes the pipes that are needed.
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

// own gives both ends of a pipe to the container's root.
func (a ExecArgs) own(end *os.File) error {
	if a.UID == 0 && a.GID == 0 {
		return nil
	}
	return end.Chown(a.UID, a.GID)
}

// giveTo hands the child's ends to a command; the streams that nobody wants
// are /dev/null.
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

// listenConsole listens for the terminal, by way of a descriptor of the
// directory, as its path may be too long for a socket address.
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

// acceptConsole takes the terminal that the runtime has sent before it exited.
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

// receiveFile receives one descriptor (unix(7), SCM_RIGHTS).
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
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

// start starts copying.
func (s *stdio) start() {
	for _, o := range s.output {
		go o.copy()
	}
	if s.input == nil || s.stdin == nil {
		return
	}
	go func() {
		_, _ = io.Copy(s.input, s.stdin) // an error means that one side has gone
		if s.console == nil {
			_ = s.input.Close()
		}
	}()
}

// copy copies until EOF or, after drain has set a deadline, until everything
// is copied that was in the pipe then.
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

// terminalHolds is more than the kernel keeps between the ends of a terminal, of which
// it tells only the part that it has got ready for reading.
const terminalHolds = 64 << 10

// rest copies what is in the pipe or terminal at this moment and little more, as a
// surviving child may write for ever. It reads without a deadline, which could pass
// while the writing takes its time, and without waiting.
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

// readNow reads what is there; nothing without an error when nothing is.
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

// inPipe returns how many bytes can be read.
func inPipe(raw syscall.RawConn) (n int, err error) {
	cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		err = os.NewSyscallError("ioctl FIONREAD", err)
	}
	return n, errors.Join(cerr, err)
}

// counter counts what is read of an output. It also hides *os.File's WriteTo, which would not stop
// at a deadline alike on every kernel.
type counter struct{ o *output }

func (c counter) Read(p []byte) (int, error) {
	n, err := c.o.from.Read(p)
	c.o.read.Add(int64(n))
	return n, err
}

// drain waits until the output of an ended process is copied. What something else holds open is
// awaited until the channel is closed, and then, or at once where it is nil, as long as output
// keeps coming, within drainLimit. When ctx ends, what is there by then is all.
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

// awaitSilence waits until everything is copied, or nothing has come for drainGrace.
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

// read returns how many bytes of output have been read.
func (s *stdio) read() (n int64) {
	for _, o := range s.output {
		n += o.read.Load()
	}
	return n
}

// closeChild closes our copies of the child's ends.
func (s *stdio) closeChild() {
	for _, f := range s.ours {
		_ = f.Close()
	}
	s.ours = nil
}

// close closes everything that is ours and ends the copying.
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
		return fmt.Errorf("resize terminal: there is none: %w", errdefs.ErrFailedPrecondition)
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
