package registry

import (
	"context"
	"errors"
	"io"
	"time"
)

// minRate is the minimum rate of a transfer in bytes per second, averaged over a stall time-out. A
// link of 20 KB/s that six transfers share gives each three times as much.
const minRate = 1 << 10

// errStalled is the cause of cancellation of a transfer that is slower than minRate.
var errStalled = errors.New("slower than 1 KiB/s for the whole stall time-out")

// paceReader cancels the request that it reads from if that is slower than minRate. The time that
// the consumer takes between reads does not count.
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
