package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/micarun/mica/internal/sleep"
)

// drip returns size bytes at a time, with a pause before each portion.
type drip struct {
	ctx   context.Context
	size  int
	pause time.Duration
	left  int // bytes to come
	there int // of the current portion
}

func (d *drip) Read(p []byte) (int, error) {
	if d.left <= 0 {
		return 0, io.EOF
	}
	if d.there == 0 {
		if err := sleep.For(d.ctx, d.pause); err != nil {
			return 0, err
		}
		d.there = min(d.size, d.left)
	}
	n := min(d.there, len(p))
	d.there, d.left = d.there-n, d.left-n
	return n, nil
}

func TestPaceOfTransfers(t *testing.T) {
	const window = 30 * time.Second
	for name, c := range map[string]struct {
		size  int
		pause time.Duration
		left  int
		dies  bool
	}{
		"a sixth of 20 KB/s":              {3400, time.Second, 10 << 20, false},
		"bursts with pauses":              {64 << 10, 25 * time.Second, 10 << 20, false},
		"little at the end":               {10, 20 * time.Second, 10, false},
		"nothing":                         {1, time.Hour, 1, true},
		"a byte before each time-out":     {1, 29 * time.Second, 1 << 20, true},
		"many bytes, too few":             {100, time.Second, 1 << 20, true},
		"just enough":                     {minRate + 100, time.Second, 1 << 20, false},
		"one burst, then a byte at times": {1, 10 * time.Second, 1 << 10, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				_, err := io.Copy(io.Discard, newPaceReader(&drip{ctx: ctx, size: c.size, pause: c.pause, left: c.left}, window, cancel))
				if dies := errors.Is(err, errStalled); dies != c.dies || !dies && err != nil {
					t.Errorf("error %v, want death: %v", err, c.dies)
				}
			})
		})
	}
}

// A slow consumer, such as a busy disk, does not make a transfer too slow.
func TestPaceDoesNotCountTheConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		r := newPaceReader(&drip{ctx: ctx, size: 10, pause: time.Millisecond, left: 1000}, 30*time.Second, cancel)
		buffer := make([]byte, 10)
		for {
			_, err := r.Read(buffer)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
	})
}

// Redirects and tokens that each take almost a stall time-out have a common limit.
func TestOpeningIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{stall: 30 * time.Second}
		steps := 0
		_, err := h.open(t.Context(), func(ctx context.Context) (*http.Response, error) {
			for {
				if err := sleep.For(ctx, 29*time.Second); err != nil {
					return nil, err
				}
				steps++
			}
		})
		if !errors.Is(err, errStalled) || steps != openStalls {
			t.Errorf("%d steps, %v", steps, err)
		}
	})
}
