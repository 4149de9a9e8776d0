package runtimeservice

import (
	"context"
	"fmt"

	"github.com/micarun/mica/internal/journal"
)

// opLock lets one operation at a time work on an object. Unlike a mutex it can
// be waited for with a deadline.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

// lock takes the lock or returns the context's error. what names the
// operation and the object for that error.
func (l opLock) lock(ctx context.Context, what string) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	journal.Enter(ctx, "wait for the operation before it")
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: wait for the operation before it: %w", what, ctx.Err())
	}
}

func (l opLock) unlock() { <-l }
