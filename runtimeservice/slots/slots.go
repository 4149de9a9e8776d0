// Package slots limits how many parts of pod starts, such as making namespaces or creating a
// container, run at the same time. Without a limit, each of many pods that start together would take
// as long as all of them, and the kubelet, which needs the same processors, would see none of them
// running until the end.
//
// It knows nothing of pods: a caller names the step that it begins, and says when the step has ended.
package slots

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/micarun/mica/internal/operations"
)

const (
	// slotsPerProcessor is how many steps may run at the same time for each processor. Steps wait
	// for the kernel more than they compute.
	slotsPerProcessor = 4
	// slotTime is the longest time that a step holds its slot. A step that takes longer does not
	// wait for a processor, so the next step need not wait for it.
	slotTime = 500 * time.Millisecond
)

// Step is a part of a pod's start that keeps a processor busy. A later step has priority, so that
// a pod is finished before the next one begins.
type Step int

// The steps, in the order of their priority.
const (
	Pod Step = iota
	Create
	Start
	// Recover is the recovery of a pod or container at the daemon's start. Calls for it wait.
	Recover
	steps // the number of steps
)

// Semaphore limits how many steps run at the same time.
//
// The step with the highest priority gets the next free slot; among equal steps, the one that has
// waited longest. Its methods may be called concurrently.
type Semaphore struct {
	time time.Duration // after which a slot is free again, also if its step is still running

	mu      sync.Mutex // guards the fields below
	free    int        // 0 while a step waits
	waiting [steps][]chan struct{}
}

// New returns a semaphore with four slots for each processor.
func New() *Semaphore {
	return &Semaphore{time: slotTime, free: slotsPerProcessor * runtime.GOMAXPROCS(0)}
}

// Acquire waits for a slot. The caller calls release when the step has ended; that may be after the
// slot's time. The error is ctx's.
func (p *Semaphore) Acquire(ctx context.Context, s Step) (release func(), err error) {
	if slot := p.queue(s); slot != nil {
		operations.Enter(ctx, "wait for a slot")
		select {
		case <-slot:
		case <-ctx.Done():
			p.leave(s, slot)
			return nil, fmt.Errorf("wait for a slot: %w", context.Cause(ctx))
		}
	}
	end := sync.OnceFunc(p.release)
	timer := time.AfterFunc(p.time, end)
	return func() {
		timer.Stop()
		end()
	}, nil
}

// queue takes a free slot and returns nil, or returns a channel that is closed when the caller has
// a slot.
func (p *Semaphore) queue(s Step) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free > 0 {
		p.free--
		return nil
	}
	slot := make(chan struct{})
	p.waiting[s] = append(p.waiting[s], slot)
	return slot
}

// leave removes a waiting step. If the step has just got its slot, leave frees the slot.
func (p *Semaphore) leave(s Step, slot <-chan struct{}) {
	p.mu.Lock()
	before := len(p.waiting[s])
	p.waiting[s] = slices.DeleteFunc(p.waiting[s], func(c chan struct{}) bool { return c == slot })
	acquired := len(p.waiting[s]) == before
	p.mu.Unlock()
	if acquired {
		p.release()
	}
}

// release gives the slot to the next step.
func (p *Semaphore) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := steps - 1; s >= 0; s-- {
		if len(p.waiting[s]) > 0 {
			close(p.waiting[s][0])
			p.waiting[s] = slices.Delete(p.waiting[s], 0, 1)
			return
		}
	}
	p.free++
}
