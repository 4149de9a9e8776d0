package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// link is one connection to one keeper. Its methods may be called concurrently.
type link struct {
	conn   *wire.Conn
	hello  wire.Hello
	pushed func(wire.Message, wire.FDs) // handles pushed messages; owns the descriptors
	done   chan struct{}                // closed when reading has ended
	// sending is held by the request that is being sent: the socket has a single write deadline,
	// which is set for that request.
	sending chan struct{}

	mu      sync.Mutex // guards the rest
	last    uint64
	waiting map[uint64]chan answer
	lost    bool
}

type answer struct {
	m   wire.Message
	fds wire.FDs
}

// newLink takes ownership of conn, exchanges Hello and starts reading.
func newLink(ctx context.Context, conn *wire.Conn, pushed func(wire.Message, wire.FDs)) (*link, error) {
	l := &link{conn: conn, pushed: pushed, done: make(chan struct{}), sending: make(chan struct{}, 1), waiting: map[uint64]chan answer{}}
	go l.read()
	m, fds, err := l.call(ctx, wire.OpHello, wire.Hello{Version: wire.Version, Min: wire.MinVersion}, nil)
	fds.Close()
	if err == nil {
		err = m.Into(&l.hello)
	}
	if err == nil {
		_, err = l.hello.Agree()
	}
	if err != nil {
		l.close()
		<-l.done
		return nil, fmt.Errorf("greet keeper: %w", err)
	}
	return l, nil
}

func (l *link) close() { _ = l.conn.Close() }

// lose closes the connection, so that later requests fail.
func (l *link) lose() {
	l.mu.Lock()
	l.lost = true
	l.mu.Unlock()
	l.close()
}

func (l *link) read() {
	defer close(l.done)
	for {
		m, fds, err := l.conn.Receive(nil)
		if errors.Is(err, wire.ErrDescriptors) {
			if m.Error == nil {
				m.Error = outOfDescriptors(err)
			}
			err = nil
		}
		if err != nil {
			break
		}
		if m.ID == 0 {
			l.pushed(m, fds)
			continue
		}
		l.mu.Lock()
		ch := l.waiting[m.ID]
		delete(l.waiting, m.ID)
		l.mu.Unlock()
		if ch == nil { // the caller has returned
			fds.Close()
			continue
		}
		ch <- answer{m, fds}
	}
	_ = l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	for id, ch := range l.waiting {
		delete(l.waiting, id)
		close(ch)
	}
}

// outOfDescriptors is the error of a message whose descriptors this process had no free numbers
// for.
func outOfDescriptors(err error) *wire.Error {
	return wire.Errorf(wire.CodeExhausted, "%v", nameLimit(err))
}

// nameLimit adds the daemon's limit to an error for lack of descriptors.
func nameLimit(err error) error { return wire.NameLimit(err, "micad", "micad.service") }

// call sends a request and waits for the answer. fds remain the caller's; the returned descriptors
// are the caller's too.
func (l *link) call(ctx context.Context, op string, body any, fds wire.FDs) (wire.Message, wire.FDs, error) {
	id, ch, err := l.expect()
	if err != nil {
		return wire.Message{}, nil, err
	}
	if err := l.send(ctx, wire.Message{ID: id, Op: op}, body, fds); err != nil {
		l.abandon(id, ch)
		return wire.Message{}, nil, err
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return wire.Message{}, nil, fmt.Errorf("%s: %w", op, errLost)
		}
		if a.m.Error != nil {
			a.fds.Close()
			return wire.Message{}, nil, a.m.Error
		}
		return a.m, a.fds, nil
	case <-ctx.Done():
		l.abandon(id, ch)
		return wire.Message{}, nil, fmt.Errorf("%s: wait for the keeper: %w", op, ctx.Err())
	}
}

func (l *link) send(ctx context.Context, m wire.Message, body any, fds wire.FDs) error {
	var numbers []int
	for name, fd := range fds {
		m.FDs = append(m.FDs, name)
		numbers = append(numbers, fd)
	}
	packet, err := wire.Encode(m, body)
	if err != nil {
		return err
	}
	if err := l.transmit(ctx, packet, numbers); err != nil {
		return fmt.Errorf("%s: send to the keeper: %w", m.Op, err)
	}
	return nil
}

// sendTimeout bounds the sending of one request. A keeper reads all the time: if its socket stays
// full for this long, it is stopped.
const sendTimeout = 30 * time.Second

// transmit sends one packet. If ctx has ended, it returns the error of ctx. It returns errLost with
// errUnsent only if the connection is broken: the request may then be sent to the next keeper.
func (l *link) transmit(ctx context.Context, packet []byte, fds []int) error {
	select {
	case l.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.sending }()
	if err := ctx.Err(); err != nil {
		return err
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	interrupt := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = l.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupt)
	})
	err := l.conn.Send(packet, fds)
	if !stop() {
		<-interrupt // otherwise its deadline could hit the next request
	}
	switch {
	case err == nil:
		return nil
	case isBroken(err):
		l.lose() // so that the client connects to the next keeper at once
		return errors.Join(err, errLost, errUnsent)
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it has not read from its socket for %s: %w", sendTimeout, errdefs.ErrUnavailable)
	}
	return err
}

// isBroken reports whether a connection has no peer. Other errors of Send are temporary.
func isBroken(err error) bool {
	for _, broken := range []error{unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN, unix.EBADF, os.ErrClosed} {
		if errors.Is(err, broken) {
			return true
		}
	}
	return false
}

func (l *link) expect() (uint64, chan answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return 0, nil, errors.Join(errLost, errUnsent)
	}
	l.last++
	ch := make(chan answer, 1)
	l.waiting[l.last] = ch
	return l.last, ch, nil
}

// abandon stops waiting for an answer, which may already have arrived.
func (l *link) abandon(id uint64, ch chan answer) {
	l.mu.Lock()
	_, waiting := l.waiting[id]
	delete(l.waiting, id)
	l.mu.Unlock()
	if waiting {
		return
	}
	if a, ok := <-ch; ok {
		a.fds.Close()
	}
}
