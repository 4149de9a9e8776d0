package imageservice

import (
	"context"
	"fmt"
	"time"

	"github.com/micarun/mica/overlay"
)

// layerCall is a fetch of a layer that pulls share.
type layerCall = call[*overlay.Draft, *layerProgress]

// joinRate is the minimum rate in bytes per second of another registry's transfer of a layer. If
// the transfer is slower, the pull asks its own registry too. A registry that serves a node is a
// hundred times as fast. On a slow link the cost is one redundant transfer.
const joinRate = 128 << 10

// joinWindows is the number of measurements of the rate of a joined transfer per stall time-out.
const joinWindows = 3

// awaitJoined waits for a fetch that a pull from another registry has begun. slow means that it is
// slower than joinRate and still running. total is the size of its blob in bytes.
func awaitJoined(ctx context.Context, c *layerCall, window time.Duration, total int64) (slow bool) {
	ticker := time.NewTicker(window)
	defer ticker.Stop()
	need := int64(joinRate * window.Seconds())
	for last := c.info.done.Load(); ; {
		select {
		case <-c.done:
			return false
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		now := c.info.done.Load()
		if now < total && now-last < need {
			return true
		}
		last = now
	}
}

// awaitFirst waits for the first of two fetches of a layer that succeeds, and releases the other.
func awaitFirst(ctx context.Context, a, b *layerCall) (*layerCall, error) {
	var err error
	first, second := a, b
	select {
	case <-a.done:
	case <-b.done:
		first, second = b, a
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		if _, err = first.wait(ctx); err == nil {
			second.release()
			return first, nil
		}
		var other error
		if _, other = second.wait(ctx); other == nil {
			first.release()
			return second, nil
		}
		err = fmt.Errorf("%w; also: %s", err, other.Error()) // other does not determine the class
	}
	a.release()
	b.release()
	return nil, err
}
