package network

import (
	"context"
	"sync"
)

// podLocks serializes the operations on each pod. The zero value is ready.
type podLocks struct {
	// mu guards locks and the users of each. It is never held while waiting for a pod.
	mu    sync.Mutex
	locks map[string]*podLock
}

// podLock is the lock of one pod. A holder has put a value into held; users counts holders and
// waiters.
type podLock struct {
	held  chan struct{}
	users int
}

// lock waits for the pod's lock until ctx ends.
func (p *podLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	p.mu.Lock()
	if p.locks == nil {
		p.locks = map[string]*podLock{}
	}
	l := p.locks[id]
	if l == nil {
		l = &podLock{held: make(chan struct{}, 1)}
		p.locks[id] = l
	}
	l.users++
	p.mu.Unlock()

	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; p.leave(id, l) }, nil
	case <-ctx.Done():
		p.leave(id, l)
		return nil, context.Cause(ctx)
	}
}

func (p *podLocks) leave(id string, l *podLock) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(p.locks, id)
	}
}
