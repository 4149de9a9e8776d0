package network

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// podLocks serializes the operations on each pod. The zero value is ready.
type podLocks struct {
	// mu guards locks and the users of each. It is never held while waiting for a pod.
	mu    sync.Mutex
	locks map[string]*podLock
}

// podLock is the lock of one pod: a semaphore of 1, because waiting for it ends with a context.
type podLock struct {
	held  *semaphore.Weighted
	users int // holders and waiters
}

// lock waits for the pod's lock until ctx ends.
func (p *podLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	p.mu.Lock()
	if p.locks == nil {
		p.locks = map[string]*podLock{}
	}
	l := p.locks[id]
	if l == nil {
		l = &podLock{held: semaphore.NewWeighted(1)}
		p.locks[id] = l
	}
	l.users++
	p.mu.Unlock()

	if l.held.Acquire(ctx, 1) != nil {
		p.leave(id, l)
		return nil, context.Cause(ctx)
	}
	return func() { l.held.Release(1); p.leave(id, l) }, nil
}

func (p *podLocks) leave(id string, l *podLock) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(p.locks, id)
	}
}
