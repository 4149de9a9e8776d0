package server

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// batch is how many bytes of output are moved at a time: a pipe's capacity.
const batch = 64 << 10

// pump is the one goroutine that moves the bytes of all containers. It owns
// every stdio: others reach one only from a function passed to call. It
// blocks in writes of log files, and nowhere else.
type pump struct {
	poll, wake int
	table      *table
	watches    map[int32]*watch
	count      int32
	in, out    []byte

	mu    sync.Mutex // guards calls, stopped
	calls []func()
	stop  bool
	done  chan struct{}
}

// watch is one descriptor in the pump's epoll set.
type watch struct {
	stamp               int32
	read, write, broken func()
}

func newPump() (*pump, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(poll)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	p := &pump{
		poll: poll, wake: wake, watches: map[int32]*watch{}, done: make(chan struct{}),
		in: make([]byte, batch+maxLine+headSize), out: make([]byte, 0, 2*batch),
	}
	p.onRead(wake, func() {
		var b [8]byte
		_, _ = unix.Read(wake, b[:])
	})
	go p.run()
	return p, nil
}

func (p *pump) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, 64)
	for p.runCalls() {
		n, err := unix.EpollWait(p.poll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err))
		}
		for _, e := range events[:max(n, 0)] {
			p.dispatch(e)
		}
	}
	_ = unix.Close(p.poll)
	_ = unix.Close(p.wake)
}

func (p *pump) dispatch(e unix.EpollEvent) {
	w := p.watches[e.Fd]
	if w == nil || w.stamp != e.Pad {
		return // closed by an earlier event of this round
	}
	const bad = unix.EPOLLERR | unix.EPOLLHUP
	if e.Events&(unix.EPOLLIN|bad) != 0 && w.read != nil {
		w.read()
	}
	if p.watches[e.Fd] == w && e.Events&(unix.EPOLLOUT|bad) != 0 && w.write != nil {
		w.write()
	}
	if p.watches[e.Fd] == w && e.Events&bad != 0 && w.broken != nil {
		w.broken()
	}
}

// close ends the pump after the calls that are queued.
func (p *pump) close() {
	p.mu.Lock()
	p.stop = true
	p.mu.Unlock()
	p.kick()
	<-p.done
}

func (p *pump) kick() { _, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// call runs f in the pump and waits for it. When ctx ends first, f runs later.
func (p *pump) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	p.mu.Lock()
	p.calls = append(p.calls, func() { defer close(done); f() })
	p.mu.Unlock()
	p.kick()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the output pump: %w", ctx.Err())
	}
}

func (p *pump) runCalls() (goOn bool) {
	p.mu.Lock()
	calls, stop := p.calls, p.stop
	p.calls = nil
	p.mu.Unlock()
	for _, f := range calls {
		f()
	}
	return !stop
}

// onRead calls f whenever fd can be read or has come to its end; nil ends it.
func (p *pump) onRead(fd int, f func()) { p.set(fd, func(w *watch) { w.read = f }) }

// onWrite calls f whenever fd can be written or nobody reads it any more.
func (p *pump) onWrite(fd int, f func()) { p.set(fd, func(w *watch) { w.write = f }) }

// onBroken calls f when nobody reads fd any more.
func (p *pump) onBroken(fd int, f func()) { p.set(fd, func(w *watch) { w.broken = f }) }

func (p *pump) set(fd int, change func(*watch)) {
	w := p.watches[int32(fd)]
	op := unix.EPOLL_CTL_MOD
	if w == nil {
		p.count++
		w = &watch{stamp: p.count}
		op = unix.EPOLL_CTL_ADD
	}
	change(w)
	var events uint32
	if w.read != nil {
		events |= unix.EPOLLIN
	}
	if w.write != nil {
		events |= unix.EPOLLOUT
	}
	if events == 0 && w.broken == nil {
		if op == unix.EPOLL_CTL_MOD {
			_ = unix.EpollCtl(p.poll, unix.EPOLL_CTL_DEL, fd, nil)
			delete(p.watches, int32(fd))
		}
		return
	}
	e := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: w.stamp}
	if err := unix.EpollCtl(p.poll, op, fd, &e); err == nil {
		p.watches[int32(fd)] = w
	}
}

// forget takes fd out of the set. It must be called before fd is closed: a
// copy held by the daemon would keep it in.
func (p *pump) forget(fd int) {
	if p.watches[int32(fd)] != nil {
		_ = unix.EpollCtl(p.poll, unix.EPOLL_CTL_DEL, fd, nil)
		delete(p.watches, int32(fd))
	}
}

// drop forgets and closes fd, if it is one.
func (p *pump) drop(fd int) {
	if fd >= 0 {
		p.forget(fd)
		_ = unix.Close(fd)
	}
}
