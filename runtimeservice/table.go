package runtimeservice

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

// object is an element of a table: a pod or a container.
type object interface {
	// id is the object's full ID, 64 hexadecimal digits.
	id() string
	// identity is a name that at most one object of its kind has at a time.
	identity() string
}

// The kinds of objects.
const (
	podKind       = "pod"
	containerKind = "container"
)

// table holds all objects of one kind by ID and by identity. Concurrent calls that create the
// object of one identity share one creation. It is safe for concurrent use.
type table[T object] struct {
	kind string // podKind or containerKind, for errors
	// operations tracks creations under the name making, such as "run pod". It may be nil.
	operations *operations.Tracker
	making     string

	mu      sync.RWMutex
	byID    map[string]T
	byName  map[string]T
	flights map[string]*flight[T]
}

// flight is a creation under way.
type flight[T object] struct {
	op   *operations.Operation
	done chan struct{}
	obj  T
	err  error
}

func newTable[T object](kind string) *table[T] {
	return &table[T]{kind: kind, byID: map[string]T{}, byName: map[string]T{}, flights: map[string]*flight[T]{}}
}

// get finds the object whose ID is id, or the only one whose ID starts with it. Errors:
// ErrNotFound, ErrInvalidArgument for an empty or ambiguous ID.
func (t *table[T]) get(id string) (T, error) {
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

// named finds the object with the identity.
func (t *table[T]) named(identity string) (T, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	obj, ok := t.byName[identity]
	return obj, ok
}

// all returns every object, in no order.
func (t *table[T]) all() []T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.byID))
}

// add inserts obj by its ID and its identity. It returns ErrAlreadyExists if another object has the
// identity.
func (t *table[T]) add(obj T) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other, ok := t.byName[obj.identity()]; ok {
		return fmt.Errorf("add %s %s: name %q is in use by %s: %w", t.kind, obj.id(), obj.identity(), other.id(), errdefs.ErrAlreadyExists)
	}
	t.byID[obj.id()] = obj
	t.byName[obj.identity()] = obj
	return nil
}

// remove deletes obj and frees its identity.
func (t *table[T]) remove(obj T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, obj.id())
	if other, ok := t.byName[obj.identity()]; ok && other.id() == obj.id() {
		delete(t.byName, obj.identity())
	}
}

// create returns the object of the identity: the one that an earlier call is making, or an existing
// one that reuse accepts, or a new one from build. build runs on its own context that ends after
// limit, so it continues if the caller gives up, and the retry gets its result. build must add its
// object to the table, and remove it again if it fails.
func (t *table[T]) create(ctx context.Context, identity string, limit time.Duration, reuse func(T) error, build func(context.Context) (T, error)) (T, error) {
	var none T
	t.mu.Lock()
	if f, ok := t.flights[identity]; ok {
		t.mu.Unlock()
		return f.wait(ctx, t.kind, identity)
	}
	if obj, ok := t.byName[identity]; ok {
		t.mu.Unlock()
		if err := reuse(obj); err != nil {
			return none, err
		}
		return obj, nil
	}
	buildCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	buildCtx, op := t.operations.Begin(buildCtx, t.making, operations.Subject{Name: identity})
	f := &flight[T]{op: op, done: make(chan struct{})}
	t.flights[identity] = f
	t.mu.Unlock()

	go func() {
		defer cancel()
		f.obj, f.err = build(buildCtx)
		op.End(f.err)
		t.mu.Lock()
		delete(t.flights, identity)
		t.mu.Unlock()
		close(f.done)
	}()
	return f.wait(ctx, t.kind, identity)
}

func (f *flight[T]) wait(ctx context.Context, kind, identity string) (T, error) {
	defer f.op.AddCall()()
	select {
	case <-f.done:
		return f.obj, f.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("create %s %q: still under way%s, a retry joins it: %w", kind, identity, where(f.op), ctx.Err())
	}
}

// where describes the stage of an operation for the error of a call that waited for it: " (set up
// network for 2m0s)", with the detail if there is one.
func where(op *operations.Operation) string {
	stage, since := op.Current()
	if stage == "" {
		return ""
	}
	text := fmt.Sprintf("%s for %s", stage, since.Round(time.Millisecond))
	if detail := op.Detail(); detail != "" {
		text += ": " + detail
	}
	return " (" + text + ")"
}

// drain waits until no creation is under way or ctx ends.
func (t *table[T]) drain(ctx context.Context) error {
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
