package runtimeservice

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
)

// recoveries are the pods and containers that the start has not finished with. The
// nil pointer has none. It is safe for concurrent use.
type recoveries struct {
	over chan struct{} // closed when all have ended, and the sweep too

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

// begin adds a pod or container; end takes it out.
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

// wait returns when the pod or container with that ID is recovered, or the error
// of ctx with the stage that its recovery is in.
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
		return fmt.Errorf("wait until %s is recovered%s: %w", id, where(u.op), ctx.Err())
	}
}

// unfinished returns the IDs of what is not recovered, with what is being done for it.
func (r *recoveries) unfinished() map[string]string {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	running := maps.Clone(r.running)
	r.mu.Unlock()
	stages := make(map[string]string, len(running))
	for id, u := range running {
		stages[id] = u.op.What() + where(u.op)
	}
	return stages
}

// Recovered is closed once every pod and container that was there at the start is
// recovered, or is left to its removal, and what no record claims is removed.
func (s *Service) Recovered() <-chan struct{} { return s.recoveries.over }

// Unfinished says what the start has still to do: "" if nothing, else how many pods
// and containers are not recovered yet, and the stage of one of them.
func (s *Service) Unfinished() string {
	stages := s.recoveries.unfinished()
	if len(stages) == 0 {
		return ""
	}
	id := slices.Min(slices.Collect(maps.Keys(stages)))
	return fmt.Sprintf("recovering %d pods and containers, among them %s: %s", len(stages), id, stages[id])
}

// finishStart does what recover has left to do, each part by itself and under a
// deadline of its own. It returns when every object that is to be recovered is
// locked, so that calls which change it wait. run ends the work.
func (s *Service) finishStart(run context.Context, todo []recovery, found []leftover) {
	var parts sync.WaitGroup
	for _, r := range todo {
		ctx, op := s.operations.Begin(run, r.on.what, r.on.on)
		locked := r.lock.try(ctx) // else a checkpoint that was under way has it
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

// runRecovery does one part under its lock, which it gives back.
func (s *Service) runRecovery(ctx context.Context, r recovery, locked bool) error {
	if !locked {
		if err := r.lock.lock(ctx, r.on.String()); err != nil {
			return err
		}
	}
	defer r.lock.unlock()
	done, err := s.slots.acquire(ctx, recoverStep)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	return r.do(ctx)
}
