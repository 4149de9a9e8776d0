package server

import (
	"fmt"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// Sizes of an attached client's buffers.
const (
	clientPipe  = 1 << 20  // output that may wait for a client, if the kernel allows this size
	inputBuffer = 16 << 10 // input read at a time, and kept until the container reads it
)

// client is one attached client. Its pipes' other ends are in the daemon. The pump owns it.
type client struct {
	io     *stdio
	input  int    // read end, or -1
	output [2]int // write ends, or -1
}

// attach makes a client. It returns the client's ends of the pipes, which the caller closes after
// sending them.
func (io *stdio) attach(a wire.Attach) (wire.FDs, error) {
	c := &client{io: io, input: -1, output: [2]int{-1, -1}}
	theirs := wire.FDs{}
	wants := [2]bool{a.Stdout, a.Stderr}
	names := [2]string{wire.FDStdout, wire.FDStderr}
	for i, s := range io.streams {
		if s == nil || s.fd < 0 || !wants[i] {
			continue
		}
		r, w, err := bufferPipe()
		if err != nil {
			c.close()
			theirs.Close()
			return nil, err
		}
		theirs[names[i]], c.output[i] = r, w
	}
	if a.Stdin && (io.stdin >= 0 || io.terminal >= 0) && !io.eof {
		r, w, err := pipe()
		if err != nil {
			c.close()
			theirs.Close()
			return nil, err
		}
		theirs[wire.FDStdin], c.input = w, r
	}
	io.add(c)
	return theirs, nil
}

func (io *stdio) add(c *client) {
	io.clients = append(io.clients, c)
	for i, fd := range c.output {
		if fd >= 0 {
			_ = unix.SetNonblock(fd, true)
			io.pump.onBroken(fd, func() { c.closeOutput(i) })
		}
	}
	if c.input >= 0 {
		_ = unix.SetNonblock(c.input, true)
		io.listen(c)
	}
}

// pipe makes a pipe of blocking, close-on-exec descriptors.
func pipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make pipe: %w", err)
	}
	return fds[0], fds[1], nil
}

func bufferPipe() (r, w int, err error) {
	r, w, err = pipe()
	if err == nil {
		// If the kernel refuses this size, the client gets the default size.
		_, _ = unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, clientPipe)
	}
	return r, w, err
}

// feed writes output to the attached clients. A client whose pipe is full loses that stream, so
// that no client delays the log.
func (io *stdio) feed(index int, data []byte) {
	for _, c := range io.clients {
		fd := c.output[index]
		if fd < 0 {
			continue
		}
		if n, err := unix.Write(fd, data); err != nil || n < len(data) {
			c.closeOutput(index)
		}
	}
	io.tidy()
}

// tidy removes clients without streams.
func (io *stdio) tidy() {
	kept := io.clients[:0]
	for _, c := range io.clients {
		if c.input >= 0 || c.output[0] >= 0 || c.output[1] >= 0 {
			kept = append(kept, c)
		}
	}
	clear(io.clients[len(kept):])
	if io.clients = kept; len(kept) == 0 {
		io.clients = nil
	}
}

func (c *client) closeOutput(index int) {
	c.io.pump.drop(c.output[index])
	c.output[index] = -1
}

func (c *client) close() {
	c.closeOutput(0)
	c.closeOutput(1)
	c.io.pump.drop(c.input)
	c.input = -1
}

// target returns the descriptor that takes input, or -1.
func (io *stdio) target() int {
	if io.terminal >= 0 {
		return io.terminal
	}
	return io.stdin
}

// listen reads input of c, unless the container has not taken earlier input yet.
func (io *stdio) listen(c *client) {
	if c.input < 0 || len(io.queued) > 0 {
		return
	}
	io.pump.onRead(c.input, func() { io.takeInput(c) })
}

func (io *stdio) takeInput(c *client) {
	in := io.pump.in[:inputBuffer]
	n, err := unix.Read(c.input, in)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if n <= 0 || io.target() < 0 {
		io.pump.drop(c.input)
		c.input = -1
		io.tidy()
		io.eof = io.eof || io.once && io.terminal < 0
		io.closeStdin()
		return
	}
	io.queued = append(io.queued, in[:n]...)
	io.giveInput()
}

// giveInput writes the queued input. Until the container has taken it, no client is read.
func (io *stdio) giveInput() {
	to := io.target()
	for to >= 0 && len(io.queued) > 0 {
		n, err := unix.Write(to, io.queued)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			io.pause()
			return
		}
		if err != nil { // the container has closed its stdin
			io.queued, io.eof = nil, io.terminal < 0
			break
		}
		io.queued = io.queued[n:]
	}
	io.queued = nil
	if to >= 0 {
		io.pump.onWrite(to, nil)
	}
	for _, c := range io.clients {
		io.listen(c)
	}
	io.closeStdin()
}

func (io *stdio) pause() {
	for _, c := range io.clients {
		if c.input >= 0 {
			io.pump.onRead(c.input, nil)
		}
	}
	io.pump.onWrite(io.target(), io.giveInput)
}

// closeStdin closes the container's stdin once all input is written and no more may come.
func (io *stdio) closeStdin() {
	if !io.eof || len(io.queued) > 0 || io.stdin < 0 {
		return
	}
	io.pump.drop(io.stdin)
	io.stdin = -1
	for _, c := range io.clients {
		io.pump.drop(c.input)
		c.input = -1
	}
	io.tidy()
	if io.onStdin != nil {
		io.onStdin()
	}
}

// part disconnects the clients of a container that has ended.
func (io *stdio) part() {
	for _, c := range io.clients {
		c.close()
	}
	io.clients = nil
	io.pump.drop(io.stdin)
	io.stdin = -1
}
