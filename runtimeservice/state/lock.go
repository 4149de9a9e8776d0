package state

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/micarun/mica/internal/operations"
)

// Lock lets one operation at a time work on an object. Unlike a mutex, its wait ends with a
// context, and it knows the operation that holds it. Operations get it in the order of their calls.
type Lock struct {
	held   *semaphore.Weighted
	holder atomic.Pointer[operations.Operation]
}

// NewLock returns a free lock.
func NewLock() *Lock { return &Lock{held: semaphore.NewWeighted(1)} }

// Lock takes the lock or returns the context's error, which names the operation that holds the lock
// and its stage. what names the waiting operation and the object.
func (l *Lock) Lock(ctx context.Context, what string) error {
	if l.Try(ctx) {
		return nil
	}
	operations.Enter(ctx, "wait for the operation before it")
	operations.Detail(ctx, l.describe)
	defer operations.Detail(ctx, nil)
	if err := l.held.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("%s: wait for the operation before it%s: %w", what, l.suffix(), err)
	}
	l.holder.Store(operations.Of(ctx))
	return nil
}

// Try takes the lock if it is free.
func (l *Lock) Try(ctx context.Context) bool {
	if !l.held.TryAcquire(1) {
		return false
	}
	l.holder.Store(operations.Of(ctx))
	return true
}

// Unlock releases the lock, which the caller holds.
func (l *Lock) Unlock() {
	l.holder.Store(nil)
	l.held.Release(1)
}

// describe returns the operation that holds the lock and its stage: "recover pod (delete network
// for 3s)". It returns "" if that is not known.
func (l *Lock) describe() string {
	if op := l.holder.Load(); op != nil {
		return op.What() + op.Where()
	}
	return ""
}

func (l *Lock) suffix() string {
	if d := l.describe(); d != "" {
		return ", " + d
	}
	return ""
}
