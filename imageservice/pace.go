package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// minRate is how many bytes a second a transfer must bring, averaged over a stall time-out, or it
// counts as dead. A link of 20 KB/s that six transfers share gives each three times as much.
const minRate = 1 << 10

// errStalled is the cause of death of a transfer that is slower than minRate.
var errStalled = errors.New("slower than 1 KiB/s for the whole stall time-out")

// paceReader cancels the request that it reads from when that is slower than minRate. Time between
// reads, which the consumer takes, does not count.
type paceReader struct {
	src    io.Reader
	window time.Duration // of waiting, in which need bytes must arrive
	need   int64
	timer  *time.Timer

	left time.Duration // of the window
	got  int64         // bytes in the window
}

func newPaceReader(src io.Reader, window time.Duration, cancel context.CancelCauseFunc) *paceReader {
	timer := time.AfterFunc(window, func() { cancel(errStalled) })
	timer.Stop()
	need := max(1, int64(minRate*window.Seconds()))
	return &paceReader{src: src, window: window, need: need, timer: timer, left: window}
}

func (r *paceReader) Read(p []byte) (int, error) {
	started := time.Now()
	r.timer.Reset(r.left)
	n, err := r.src.Read(p)
	r.timer.Stop()
	r.left -= time.Since(started)
	if r.got += int64(n); r.got >= r.need {
		r.left, r.got = r.window, 0
	}
	return n, err
}

// joinRate is how many bytes a second another registry's transfer of a layer must bring for a pull
// to wait for it instead of asking its own registry. A registry that serves a node brings a hundred
// times as much; one transfer too many is the cost on a slow link.
const joinRate = 128 << 10

// joinWindows is in how many parts of a stall time-out the rate of a joined transfer is measured.
const joinWindows = 3

// awaitJoined waits for the fetch that another registry's pull has begun. slow tells that it is
// given up as too slow, still running; total is the size of its blob.
func awaitJoined(ctx context.Context, f *layerFlight, window time.Duration, total int64) (slow bool) {
	ticker := time.NewTicker(window)
	defer ticker.Stop()
	need := int64(joinRate * window.Seconds())
	for last := f.info.done.Load(); ; {
		select {
		case <-f.done:
			return false
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		now := f.info.done.Load()
		if now < total && now-last < need {
			return true
		}
		last = now
	}
}

// awaitFirst waits for the first of two fetches of a layer that succeeds, and releases the other.
func awaitFirst(ctx context.Context, a, b *layerFlight) (*layerFlight, error) {
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
		err = fmt.Errorf("%w; also: %v", err, other)
	}
	a.release()
	b.release()
	return nil, err
}
