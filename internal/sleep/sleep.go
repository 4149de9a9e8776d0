// Package sleep waits for a time that a context can end. time.Sleep does not return when the
// caller gives up, so that an operation with a deadline would continue behind it; pauses between the
// attempts of a retry, and between looks at something that has no event, use this package.
//
// The package has no state, and its function may be called concurrently.
package sleep

import (
	"context"
	"time"
)

// For returns nil after d, or the cause of ctx's end if that comes first.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
