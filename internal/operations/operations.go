// Package operations tracks the daemon's operations on pods, containers and images: those that are
// running, each with its current stage, and the most recent ones with their outcomes. `mica
// events`, metrics and traces are based on it.
//
// It is not a log. It is lost with the process, keeps only the last thousand ended operations and
// events, and has no text that is not also in a response or in the log. It does not keep a
// successful operation without a stage, which had nothing to do.
//
// Each operation carries its current stage in the context, so that callees can set the stage
// without a reference to the operation. Parallel parts of an operation each begin an operation of
// their own. A nil *Tracker and a context without an operation are valid and cost almost nothing.
package operations

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// kept is the number of ended entries that a tracker keeps.
	kept = 1000
	// backlog is the number of entries that a follower may lag behind.
	backlog = 500
)

// ErrLagged is the error of a Follow whose callback was too slow.
var ErrLagged = errors.New("too slow to follow: some entries are lost")

// Subject is the object of an operation. Fields that do not apply are empty.
type Subject struct {
	Pod       string // ID
	Container string // ID
	Image     string // reference or ID
	Name      string // for people: namespace/pod, or namespace/pod/container
}

// Stage is one stage of an operation.
type Stage struct {
	Name    string // errors of the stage begin with it
	Started time.Time
	Took    time.Duration // time so far, while the stage runs
}

// Entry is an operation, running or ended, or an event without duration.
type Entry struct {
	// ID orders entries by their start.
	ID   uint64
	What string // "run pod", "container exited"
	Subject
	Started time.Time
	Took    time.Duration // time so far, while it runs
	Running bool
	// Calls is the number of calls that wait for the result, while the operation runs. It is 0 if
	// all have given up, and for an operation that counts none.
	Calls  int
	Stages []Stage
	// Detail has more information, such as the progress of the operation.
	Detail string
	// Err is the error of a failed operation.
	Err error
}

// Observer is notified of every operation. Its methods are called concurrently and must not block.
type Observer interface {
	// Begin is called when an operation begins. The operation uses the context that Begin returns.
	Begin(ctx context.Context, what string, s Subject) context.Context
	// End is called with that context when the operation has ended, even if the tracker does not
	// keep it.
	End(ctx context.Context, e Entry)
}

// Tracker tracks operations. Its methods may be called concurrently.
type Tracker struct {
	observers []Observer

	mu        sync.Mutex // guards the fields below
	last      uint64
	running   map[uint64]*Operation
	ended     []Entry // oldest first
	followers map[chan Entry]bool
}

// New returns a tracker that notifies the observers of its operations.
func New(observers ...Observer) *Tracker {
	return &Tracker{observers: observers, running: map[uint64]*Operation{}, followers: map[chan Entry]bool{}}
}

// Operation is a running operation. Its methods may be called concurrently, and on nil.
type Operation struct {
	tracker *Tracker
	ends    []func(Entry)

	mu     sync.Mutex // guards the fields below; taken after the tracker's mu
	entry  Entry
	detail func() string
}

type key struct{}

// Begin begins an operation. The caller must call its End. Stages entered with the returned context
// belong to the operation.
func (t *Tracker) Begin(ctx context.Context, what string, s Subject) (context.Context, *Operation) {
	if t == nil {
		return context.WithValue(ctx, key{}, (*Operation)(nil)), nil
	}
	op := &Operation{tracker: t, entry: Entry{What: what, Subject: s, Started: time.Now(), Running: true}}
	ctx = context.WithValue(ctx, key{}, op)
	for _, o := range t.observers {
		ctx = o.Begin(ctx, what, s)
		observed := ctx
		op.ends = append(op.ends, func(e Entry) { o.End(observed, e) })
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	op.entry.ID = t.last
	t.running[t.last] = op
	return ctx, op
}

// Of returns the operation of ctx, or nil.
func Of(ctx context.Context) *Operation {
	op, _ := ctx.Value(key{}).(*Operation)
	return op
}

// Enter begins a stage of ctx's operation, which ends the previous stage.
func Enter(ctx context.Context, name string) {
	op := Of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	now := time.Now()
	op.leave(now)
	op.entry.Stages = append(op.entry.Stages, Stage{Name: name, Started: now})
}

// leave sets the duration of the current stage. op.mu is held.
func (op *Operation) leave(now time.Time) {
	if n := len(op.entry.Stages); n > 0 {
		op.entry.Stages[n-1].Took = now.Sub(op.entry.Stages[n-1].Started)
	}
}

// About sets the subject of ctx's operation, if more is known than at its start.
func About(ctx context.Context, s Subject) {
	op := Of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	op.entry.Subject = s
}

// Detail sets the function that returns the progress of ctx's operation. It is called concurrently,
// and a last time when the operation ends.
func Detail(ctx context.Context, detail func() string) {
	op := Of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	op.detail = detail
}

// Current returns the operation's current stage and its duration so far; "" before the first stage.
func (op *Operation) Current() (stage string, since time.Duration) {
	if op == nil {
		return "", 0
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	n := len(op.entry.Stages)
	if n == 0 {
		return "", 0
	}
	return op.entry.Stages[n-1].Name, time.Since(op.entry.Stages[n-1].Started)
}

// Where describes the stage for the error of a call that waited for the operation: " (set up network
// for 2m0s)", with the progress if there is any. It returns "" before the first stage.
func (op *Operation) Where() string {
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

// AddCall counts one more call that waits for the operation's result. The caller runs done when the
// call no longer waits.
func (op *Operation) AddCall() (done func()) {
	if op == nil {
		return func() {}
	}
	count := func(by int) {
		op.mu.Lock()
		defer op.mu.Unlock()
		op.entry.Calls += by
	}
	count(1)
	return func() { count(-1) }
}

// What returns the kind of operation, such as "run pod".
func (op *Operation) What() string {
	if op == nil {
		return ""
	}
	return op.entry.What // immutable
}

// Detail returns the operation's progress, or "" if no function was set.
func (op *Operation) Detail() string {
	if op == nil {
		return ""
	}
	op.mu.Lock()
	detail := op.detail
	op.mu.Unlock()
	if detail == nil {
		return ""
	}
	return detail()
}

// snapshot returns the operation's current state.
func (op *Operation) snapshot() Entry {
	op.mu.Lock()
	now := time.Now()
	op.leave(now)
	e := op.entry
	e.Stages = slices.Clone(e.Stages)
	e.Took = now.Sub(e.Started)
	detail := op.detail
	op.mu.Unlock()
	if detail != nil {
		e.Detail = detail()
	}
	return e
}

// End ends the operation. It must be called once.
func (op *Operation) End(err error) {
	if op == nil {
		return
	}
	e := op.snapshot()
	e.Running, e.Calls, e.Err = false, 0, err
	t := op.tracker
	t.mu.Lock()
	delete(t.running, e.ID)
	if err != nil || len(e.Stages) > 0 {
		t.keep(e)
	}
	t.mu.Unlock()
	for _, end := range slices.Backward(op.ends) {
		end(e)
	}
}

// Note records an event without duration.
func (t *Tracker) Note(what string, s Subject, detail string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.keep(Entry{ID: t.last, What: what, Subject: s, Started: time.Now(), Detail: detail})
}

// keep adds an ended entry and sends it to every follower. It drops followers that lag. t.mu is
// held.
func (t *Tracker) keep(e Entry) {
	if len(t.ended) == kept {
		t.ended = slices.Delete(t.ended, 0, 1)
	}
	t.ended = append(t.ended, e)
	for f := range t.followers {
		select {
		case f <- e:
		default:
			delete(t.followers, f)
			close(f)
		}
	}
}

// Running returns the running operations, oldest first.
func (t *Tracker) Running() []Entry {
	t.mu.Lock()
	ops := slices.Collect(maps.Values(t.running))
	t.mu.Unlock()
	entries := make([]Entry, 0, len(ops))
	for _, op := range ops {
		entries = append(entries, op.snapshot())
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries
}

// Ended returns the kept entries, oldest first.
func (t *Tracker) Ended() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.ended)
}

// Follow calls emit for each kept entry, for each running operation, and then for each entry that
// ends later. It returns nil when ctx ends, emit's error, or ErrLagged if emit is too slow.
func (t *Tracker) Follow(ctx context.Context, emit func(Entry) error) error {
	more := make(chan Entry, backlog)
	t.mu.Lock()
	before := slices.Clone(t.ended)
	t.followers[more] = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.followers, more)
	}()
	for _, e := range append(before, t.Running()...) {
		if err := emit(e); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-more:
			if !ok {
				return ErrLagged
			}
			if err := emit(e); err != nil {
				return err
			}
		}
	}
}
