package server

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// batch is the number of bytes of output that are moved at a time: a pipe's capacity.
const batch = 64 << 10

// pump is the goroutine that moves the input and output of all containers. It owns every stdio;
// other goroutines reach one only through call. It blocks in writes to log files and nowhere else.
type pump struct {
	poll, wake int
	table      *table
	watches    map[int32]*watch
	count      int32
	in, out    []byte

	mu    sync.Mutex // guards calls, stop
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
		return // an earlier event of this round closed it
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

// close ends the pump after the queued calls.
func (p *pump) close() {
	p.mu.Lock()
	p.stop = true
	p.mu.Unlock()
	p.kick()
	<-p.done
}

func (p *pump) kick() { _, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// call runs f in the pump and waits for it. If ctx ends first, f still runs later.
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

// onRead calls f whenever fd is readable or at its end. A nil f stops this.
func (p *pump) onRead(fd int, f func()) { p.set(fd, func(w *watch) { w.read = f }) }

// onWrite calls f whenever fd is writable or has no reader. A nil f stops this.
func (p *pump) onWrite(fd int, f func()) { p.set(fd, func(w *watch) { w.write = f }) }

// onBroken calls f when fd has no reader any more.
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

// forget removes fd from the set. It must be called before fd is closed: the daemon's copy would
// otherwise keep it in the set.
func (p *pump) forget(fd int) {
	if p.watches[int32(fd)] != nil {
		_ = unix.EpollCtl(p.poll, unix.EPOLL_CTL_DEL, fd, nil)
		delete(p.watches, int32(fd))
	}
}

// drop removes fd from the set and closes it, unless it is negative.
func (p *pump) drop(fd int) {
	if fd >= 0 {
		p.forget(fd)
		_ = unix.Close(fd)
	}
}
