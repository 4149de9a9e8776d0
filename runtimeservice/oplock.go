package runtimeservice

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/micarun/mica/internal/journal"
)

// opLock lets one operation at a time work on an object. Unlike a mutex it can
// be waited for with a deadline, and it knows the operation that holds it.
type opLock struct {
	held   chan struct{}
	holder atomic.Pointer[journal.Operation]
}

func newOpLock() *opLock { return &opLock{held: make(chan struct{}, 1)} }

// lock takes the lock or returns the context's error, which names the operation
// that holds the lock and its stage. what names the waiting operation and the
// object.
func (l *opLock) lock(ctx context.Context, what string) error {
	if l.try(ctx) {
		return nil
	}
	journal.Enter(ctx, "wait for the operation before it")
	journal.Detail(ctx, l.describe)
	defer journal.Detail(ctx, nil)
	select {
	case l.held <- struct{}{}:
		l.holder.Store(journal.Of(ctx))
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: wait for the operation before it%s: %w", what, l.suffix(), ctx.Err())
	}
}

// try takes the lock if it is free.
func (l *opLock) try(ctx context.Context) bool {
	select {
	case l.held <- struct{}{}:
		l.holder.Store(journal.Of(ctx))
		return true
	default:
		return false
	}
}

func (l *opLock) unlock() {
	l.holder.Store(nil)
	<-l.held
}

// describe names the operation that holds the lock and its stage: "recover pod
// (delete network for 3s)". It is "" where that is not known.
func (l *opLock) describe() string {
	if op := l.holder.Load(); op != nil {
		return op.What() + where(op)
	}
	return ""
}

func (l *opLock) suffix() string {
	if d := l.describe(); d != "" {
		return ", " + d
	}
	return ""
}
