package runtimeservice

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/slots"
)

// recoveries are the pods and containers whose recovery has not ended. The nil pointer has none. It
// is safe for concurrent use.
type recoveries struct {
	over chan struct{} // closed when all recoveries and the sweep have ended

	mu      sync.Mutex // guards running
	running map[string]*underRecovery
}

type underRecovery struct {
	op   *operations.Operation
	done chan struct{}
}

func newRecoveries() *recoveries {
	return &recoveries{over: make(chan struct{}), running: map[string]*underRecovery{}}
}

// begin adds a pod or container; end removes it.
func (r *recoveries) begin(id string, op *operations.Operation) (end func()) {
	u := &underRecovery{op: op, done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[id] = u
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.running, id)
		close(u.done)
	}
}

// wait returns when the pod or container with that ID is recovered. If ctx ends first, it returns
// ctx's error with the recovery's stage.
func (r *recoveries) wait(ctx context.Context, id string) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	u := r.running[id]
	r.mu.Unlock()
	if u == nil {
		return nil
	}
	select {
	case <-u.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until %s is recovered%s: %w", id, u.op.Where(), ctx.Err())
	}
}

// unfinished returns the operation and stage of each recovery, by the ID of the pod or container.
func (r *recoveries) unfinished() map[string]string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	running := maps.Clone(r.running)
	r.mu.Unlock()
	stages := make(map[string]string, len(running))
	for id, u := range running {
		stages[id] = u.op.What() + u.op.Where()
	}
	return stages
}

// Recovered returns a channel that is closed once the recovery of every pod and container, and the
// sweep of leftovers, have ended. A recovery that failed has ended too: the removal of its object
// tries again.
func (s *Service) Recovered() <-chan struct{} { return s.recoveries.over }

// Unfinished describes the recoveries that have not ended: their number, and the stage of one of
// them. It returns "" if there are none. It is safe for concurrent use.
func (s *Service) Unfinished() string {
	stages := s.recoveries.unfinished()
	if len(stages) == 0 {
		return ""
	}
	id := slices.Min(slices.Collect(maps.Keys(stages)))
	return fmt.Sprintf("recovering %d pods and containers, among them %s: %s", len(stages), id, stages[id])
}

// finishStart starts the remaining work of recover, each part in its own goroutine and under its
// own deadline. It returns when the lock of every object to be recovered is held, so that calls
// which change the object wait. The work ends with run.
func (s *Service) finishStart(run context.Context, todo []recovery, found []leftover) {
	var parts sync.WaitGroup
	for _, r := range todo {
		ctx, op := s.operations.Begin(run, r.on.what, r.on.on)
		locked := r.lock.Try(ctx) // else the recovery of a checkpoint holds it
		end := s.recoveries.begin(r.id, op)
		parts.Go(func() {
			defer end()
			err := s.runRecovery(ctx, r, locked)
			if op.End(err); err != nil && run.Err() == nil {
				klog.FromContext(ctx).Error(err, "Not fully recovered; the removal tries again", "operation", r.on.what, "id", r.id, "name", r.on.on.Name)
			}
		})
	}
	parts.Go(func() { s.sweep(run, found) })
	s.background.Go(func() { s.sweepLayers(run) })
	s.background.Go(func() {
		parts.Wait()
		close(s.recoveries.over)
	})
}

// runRecovery runs one recovery under its object's lock, and unlocks it. locked says that the lock
// is held.
func (s *Service) runRecovery(ctx context.Context, r recovery, locked bool) error {
	if !locked {
		if err := r.lock.Lock(ctx, r.on.String()); err != nil {
			return err
		}
	}
	defer r.lock.Unlock()
	done, err := s.slots.Acquire(ctx, slots.Recover)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	return r.do(ctx)
}
