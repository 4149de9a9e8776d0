package state

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/operations"
)

// Object is an element of a table: a pod or a container.
type Object interface {
	// ID is the object's full ID, 64 hexadecimal digits.
	ID() string
	// Identity is a name that at most one object of its kind has at a time.
	Identity() string
}

// The kinds of objects.
const (
	PodKind       = "pod"
	ContainerKind = "container"
)

// Table holds all objects of one kind by ID and by identity. Concurrent calls that create the
// object of one identity share one creation. It is safe for concurrent use.
type Table[T Object] struct {
	kind       string // for errors
	operations *operations.Tracker

	mu      sync.RWMutex
	byID    map[string]T
	byName  map[string]T
	flights map[string]*flight[T]
}

// flight is a creation under way.
type flight[T Object] struct {
	op   *operations.Operation
	done chan struct{}
	obj  T
	err  error
}

// NewTable returns an empty table of PodKind or ContainerKind. Its creations are tracked by o, which
// may be nil.
func NewTable[T Object](kind string, o *operations.Tracker) *Table[T] {
	return &Table[T]{kind: kind, operations: o, byID: map[string]T{}, byName: map[string]T{}, flights: map[string]*flight[T]{}}
}

// Get finds the object whose ID is id, or the only one whose ID starts with it. Errors:
// ErrNotFound, ErrInvalidArgument for an empty or ambiguous ID.
func (t *Table[T]) Get(id string) (T, error) {
	var none T
	if id == "" {
		return none, fmt.Errorf("find %s: empty ID: %w", t.kind, errdefs.ErrInvalidArgument)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if obj, ok := t.byID[id]; ok {
		return obj, nil
	}
	found, matches := none, 0
	for full, obj := range t.byID {
		if strings.HasPrefix(full, id) {
			found = obj
			matches++
		}
	}
	switch matches {
	case 0:
		return none, fmt.Errorf("find %s %q: %w", t.kind, id, errdefs.ErrNotFound)
	case 1:
		return found, nil
	}
	return none, fmt.Errorf("find %s %q: ambiguous ID prefix: %d matches: %w", t.kind, id, matches, errdefs.ErrInvalidArgument)
}

// Named finds the object with the identity.
func (t *Table[T]) Named(identity string) (T, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	obj, ok := t.byName[identity]
	return obj, ok
}

// All returns every object, in no order.
func (t *Table[T]) All() []T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.byID))
}

// Add inserts obj by its ID and its identity. It returns ErrAlreadyExists if another object has the
// identity.
func (t *Table[T]) Add(obj T) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other, ok := t.byName[obj.Identity()]; ok {
		return fmt.Errorf("add %s %s: name %q is in use by %s: %w", t.kind, obj.ID(), obj.Identity(), other.ID(), errdefs.ErrAlreadyExists)
	}
	t.byID[obj.ID()] = obj
	t.byName[obj.Identity()] = obj
	return nil
}

// Remove deletes obj and frees its identity.
func (t *Table[T]) Remove(obj T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, obj.ID())
	if other, ok := t.byName[obj.Identity()]; ok && other.ID() == obj.ID() {
		delete(t.byName, obj.Identity())
	}
}

// Creation describes a call that creates the object of an identity.
type Creation[T Object] struct {
	// Operation is the name under which the creation is tracked, such as "run pod".
	Operation string
	Identity  string
	// Limit is how long Build may take.
	Limit time.Duration
	// Fits returns an error if obj is made from another config than this call's. obj may be half
	// made.
	Fits func(obj T) error
	// Reuse returns an error if obj, which fits, is not in a phase in which it can be the answer.
	Reuse func(obj T) error
	// Build makes a new object. It must add its object to the table, and remove it again if it
	// fails.
	Build func(context.Context) (T, error)
}

// answer returns an earlier call's object, if it can be the answer to this call.
func (c Creation[T]) answer(obj T) (T, error) {
	var none T
	if err := c.Fits(obj); err != nil {
		return none, err
	}
	if err := c.Reuse(obj); err != nil {
		return none, err
	}
	return obj, nil
}

// Create returns the object of the identity: one that exists, one that an earlier call is making,
// or a new one from Build. An object of an earlier call must pass Fits and Reuse, also if the call
// is still under way. Build runs on its own context that ends after the limit, so it continues if
// the caller gives up, and the retry gets its result.
func (t *Table[T]) Create(ctx context.Context, c Creation[T]) (T, error) {
	t.mu.Lock()
	earlier, recorded := t.byName[c.Identity]
	if f, ok := t.flights[c.Identity]; ok {
		t.mu.Unlock()
		if recorded {
			if err := c.Fits(earlier); err != nil { // at once: the creation may take minutes
				var none T
				return none, err
			}
		}
		obj, err := f.wait(ctx, t.kind, c.Identity)
		if err != nil {
			return obj, err
		}
		return c.answer(obj)
	}
	if recorded {
		t.mu.Unlock()
		return c.answer(earlier)
	}
	f := t.begin(ctx, c)
	t.mu.Unlock()
	return f.wait(ctx, t.kind, c.Identity)
}

// begin starts Build in a goroutine. The caller holds t.mu.
func (t *Table[T]) begin(ctx context.Context, c Creation[T]) *flight[T] {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Limit)
	ctx, op := t.operations.Begin(ctx, c.Operation, operations.Subject{Name: c.Identity})
	f := &flight[T]{op: op, done: make(chan struct{})}
	t.flights[c.Identity] = f
	go func() {
		defer cancel()
		f.obj, f.err = c.Build(ctx)
		op.End(f.err)
		t.mu.Lock()
		delete(t.flights, c.Identity)
		t.mu.Unlock()
		close(f.done)
	}()
	return f
}

func (f *flight[T]) wait(ctx context.Context, kind, identity string) (T, error) {
	defer f.op.AddCall()()
	select {
	case <-f.done:
		return f.obj, f.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("create %s %q: still under way%s, a retry joins it: %w", kind, identity, f.op.Where(), ctx.Err())
	}
}

// Drain waits until no creation is under way or ctx ends.
func (t *Table[T]) Drain(ctx context.Context) error {
	for {
		t.mu.RLock()
		var next *flight[T]
		for _, f := range t.flights {
			next = f
			break
		}
		t.mu.RUnlock()
		if next == nil {
			return nil
		}
		select {
		case <-next.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s creations: %w", t.kind, ctx.Err())
		}
	}
}
