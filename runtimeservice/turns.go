package runtimeservice

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/micarun/mica/internal/journal"
)

const (
	// turnsPerProcessor is how many steps may be taken at a time: they wait for the
	// kernel more than they compute.
	turnsPerProcessor = 4
	// turnTime is how long a turn lasts at most. A step that takes longer waits for
	// something else than the processor, and nobody need wait for it.
	turnTime = 500 * time.Millisecond
)

// step is one of those on a pod's way that keep a processor busy. Later ones go
// first: a pod that has been begun is finished before the next is begun.
type step int

const (
	podStep step = iota
	createStep
	startStep
	// recoverStep finishes what was there at the daemon's start: calls for it wait.
	recoverStep
	steps // how many there are
)

// turns has steps wait for each other on a node that is given all of its pods at
// once, where each would otherwise take as long as all of them together, and the
// kubelet, which competes for the same processors, would see none of them
// running until the end. It is safe for concurrent use. Of those with the same
// step, who has waited longest is next.
type turns struct {
	time time.Duration

	mu      sync.Mutex // guards the rest
	free    int        // not 0 only while nobody waits
	waiting [steps][]chan struct{}
}

func newTurns() *turns {
	return &turns{time: turnTime, free: turnsPerProcessor * runtime.GOMAXPROCS(0)}
}

// take waits for a turn. done ends it; it may be called late, since a turn ends
// by itself. The error is the end of ctx.
func (t *turns) take(ctx context.Context, s step) (done func(), err error) {
	if turn := t.queue(s); turn != nil {
		journal.Enter(ctx, "wait for a turn")
		select {
		case <-turn:
		case <-ctx.Done():
			t.leave(s, turn)
			return nil, fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
		}
	}
	end := sync.OnceFunc(t.end)
	timer := time.AfterFunc(t.time, end)
	return func() {
		timer.Stop()
		end()
	}, nil
}

// queue returns nil if there is a turn at once, or what is closed when there is.
func (t *turns) queue(s step) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil
	}
	turn := make(chan struct{})
	t.waiting[s] = append(t.waiting[s], turn)
	return turn
}

// leave gives up waiting, or the turn if it has just come.
func (t *turns) leave(s step, turn <-chan struct{}) {
	t.mu.Lock()
	before := len(t.waiting[s])
	t.waiting[s] = slices.DeleteFunc(t.waiting[s], func(c chan struct{}) bool { return c == turn })
	came := len(t.waiting[s]) == before
	t.mu.Unlock()
	if came {
		t.end()
	}
}

// end gives the turn to the next.
func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := steps - 1; s >= 0; s-- {
		if len(t.waiting[s]) > 0 {
			close(t.waiting[s][0])
			t.waiting[s] = slices.Delete(t.waiting[s], 0, 1)
			return
		}
	}
	t.free++
}
