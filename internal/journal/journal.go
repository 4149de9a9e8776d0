// Package journal knows what a daemon is doing and what it did last: operations on
// pods, containers and images, the stage that each is in, and how the last ones
// ended. It is what `mica events` shows, and where metrics and traces of operations
// come from.
//
// It is not a log: it is lost with the process, holds no more than the last thousand
// ends, and has no text that is not also in an answer or in the log. An operation
// that ends well without ever having entered a stage had nothing to do and is not
// kept.
//
// An operation travels in a context, so that whoever works for it can say what
// stage it is in without knowing it. Where work goes on in parallel, each part
// begins an operation of its own. A nil *Journal and a context without an operation
// are fine, and cost next to nothing.
package journal

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// kept is how many ends are kept.
	kept = 1000
	// backlog is how many ends a follower may lag behind.
	backlog = 500
)

// ErrLagged ends a Follow whose reader was too slow.
var ErrLagged = errors.New("too slow to follow: some entries are lost")

// Subject is what an operation is about. Fields that do not apply are empty.
type Subject struct {
	Pod       string // ID
	Container string // ID
	Image     string // reference or ID
	Name      string // for people: namespace/pod, or namespace/pod/container
}

// Stage is a part of an operation.
type Stage struct {
	Name    string // as in the errors of the stage
	Started time.Time
	Took    time.Duration // so far, while it is the operation's last and that runs
}

// Entry is an operation, running or ended, or something that happened in no time.
type Entry struct {
	// ID orders entries by their begin.
	ID   uint64
	What string // "run pod", "container exited"
	Subject
	Started time.Time
	Took    time.Duration // so far, while it runs
	Running bool
	Stages  []Stage
	// Detail says more, such as how far the operation has come.
	Detail string
	// Err is why the operation failed, or nil.
	Err error
}

// Observer hears of every operation. Its methods are called concurrently and must
// not wait.
type Observer interface {
	// Begin is called when an operation begins; the operation runs with the context
	// that it returns.
	Begin(ctx context.Context, what string, s Subject) context.Context
	// End is called with that context when the operation has ended, also if the
	// journal does not keep it.
	End(ctx context.Context, e Entry)
}

// Journal is safe for concurrent use.
type Journal struct {
	observers []Observer

	mu        sync.Mutex // guards the rest; taken before an operation's
	last      uint64
	running   map[uint64]*Operation
	ended     []Entry // oldest first
	followers map[chan Entry]bool
}

// New returns a journal whose operations the observers hear of.
func New(observers ...Observer) *Journal {
	return &Journal{observers: observers, running: map[uint64]*Operation{}, followers: map[chan Entry]bool{}}
}

// Operation is one that runs. Its methods may be called concurrently, and on nil.
type Operation struct {
	journal *Journal
	ends    []func(Entry)

	mu     sync.Mutex // guards the rest
	entry  Entry
	detail func() string
}

type key struct{}

// Begin starts an operation, which must be ended. The stages that are entered with
// the context are its own.
func (j *Journal) Begin(ctx context.Context, what string, s Subject) (context.Context, *Operation) {
	if j == nil {
		return context.WithValue(ctx, key{}, (*Operation)(nil)), nil
	}
	op := &Operation{journal: j, entry: Entry{What: what, Subject: s, Started: time.Now(), Running: true}}
	ctx = context.WithValue(ctx, key{}, op)
	for _, o := range j.observers {
		ctx = o.Begin(ctx, what, s)
		observed := ctx
		op.ends = append(op.ends, func(e Entry) { o.End(observed, e) })
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	op.entry.ID = j.last
	j.running[j.last] = op
	return ctx, op
}

// Of returns the operation that ctx belongs to, or nil.
func Of(ctx context.Context) *Operation {
	op, _ := ctx.Value(key{}).(*Operation)
	return op
}

// Enter begins a stage of ctx's operation and so ends the one before.
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

// leave sets how long the current stage took. op.mu is held.
func (op *Operation) leave(now time.Time) {
	if n := len(op.entry.Stages); n > 0 {
		op.entry.Stages[n-1].Took = now.Sub(op.entry.Stages[n-1].Started)
	}
}

// About says more of what ctx's operation is about than was known at its begin.
func About(ctx context.Context, s Subject) {
	op := Of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	op.entry.Subject = s
}

// Detail sets what tells how far ctx's operation has come. detail is called
// concurrently, and once more at the end.
func Detail(ctx context.Context, detail func() string) {
	op := Of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	op.detail = detail
}

// Current returns the stage that the operation is in, and since when; "" before the
// first.
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

// What names the kind of operation, such as "run pod".
func (op *Operation) What() string {
	if op == nil {
		return ""
	}
	return op.entry.What // never changes
}

// Detail returns what was set to say how far the operation has come, or "".
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

// snapshot returns the operation as it is now.
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

// End ends the operation, once.
func (op *Operation) End(err error) {
	if op == nil {
		return
	}
	e := op.snapshot()
	e.Running, e.Err = false, err
	j := op.journal
	j.mu.Lock()
	delete(j.running, e.ID)
	if err != nil || len(e.Stages) > 0 {
		j.keep(e)
	}
	j.mu.Unlock()
	for _, end := range slices.Backward(op.ends) {
		end(e)
	}
}

// Note records something that happened in no time.
func (j *Journal) Note(what string, s Subject, detail string) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	j.keep(Entry{ID: j.last, What: what, Subject: s, Started: time.Now(), Detail: detail})
}

// keep adds an end and tells it to every follower. j.mu is held.
func (j *Journal) keep(e Entry) {
	if len(j.ended) == kept {
		j.ended = slices.Delete(j.ended, 0, 1)
	}
	j.ended = append(j.ended, e)
	for f := range j.followers {
		select {
		case f <- e:
		default:
			delete(j.followers, f)
			close(f)
		}
	}
}

// Running returns the operations that run, the oldest first.
func (j *Journal) Running() []Entry {
	j.mu.Lock()
	ops := slices.Collect(maps.Values(j.running))
	j.mu.Unlock()
	entries := make([]Entry, 0, len(ops))
	for _, op := range ops {
		entries = append(entries, op.snapshot())
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries
}

// Ended returns the last ends, the oldest first.
func (j *Journal) Ended() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.ended)
}

// Follow calls tell with the last ends, with what runs, and with further ends as
// they come, until ctx ends, which is no error, or tell returns an error. It returns
// ErrLagged if tell takes too long.
func (j *Journal) Follow(ctx context.Context, tell func(Entry) error) error {
	more := make(chan Entry, backlog)
	j.mu.Lock()
	before := slices.Clone(j.ended)
	j.followers[more] = true
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.followers, more)
	}()
	for _, e := range append(before, j.Running()...) {
		if err := tell(e); err != nil {
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
			if err := tell(e); err != nil {
				return err
			}
		}
	}
}
