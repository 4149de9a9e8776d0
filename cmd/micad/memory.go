package main

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/internal/residency"
)

// quietTime is how long no operation has to run before the daemon gives memory back. Operations of
// one cause, such as the pods of a deployment, are closer to each other.
const quietTime = 3 * time.Second

// memory gives memory back when a burst of operations is over: of the start, which recovers pods
// and sweeps, of pulls, and of pod starts. It is an operations.Observer.
type memory struct {
	running atomic.Int64
	changed chan struct{} // of capacity 1: an operation has begun or ended
}

func newMemory() *memory { return &memory{changed: make(chan struct{}, 1)} }

// Begin implements operations.Observer.
func (m *memory) Begin(ctx context.Context, _ string, _ operations.Subject) context.Context {
	m.running.Add(1)
	m.notify()
	return ctx
}

// End implements operations.Observer.
func (m *memory) End(context.Context, operations.Entry) {
	m.running.Add(-1)
	m.notify()
}

func (m *memory) notify() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// releaseWhenQuiet gives memory back after each burst of operations, until ctx ends.
func (m *memory) releaseWhenQuiet(ctx context.Context) error {
	m.afterBursts(ctx, func() {
		if err := residency.Release(); err != nil {
			klog.FromContext(ctx).Error(err, "Giving back memory failed")
		}
	})
	return nil
}

// afterBursts calls f each time that no operation has run for quietTime since the last one.
func (m *memory) afterBursts(ctx context.Context, f func()) {
	var quiet <-chan time.Time // nil: f was called after the last operation
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.changed:
			quiet = time.After(quietTime)
		case <-quiet:
			quiet = nil
			if m.running.Load() == 0 {
				f()
			} // else the end of the running operation is the next change
		}
	}
}
