package operations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func names(stages []Stage) []string {
	var list []string
	for _, s := range stages {
		list = append(list, s.Name)
	}
	return list
}

func TestLifeOfAnOperation(t *testing.T) {
	tracker := New()
	ctx, op := tracker.Begin(t.Context(), "run pod", Subject{Name: "a/b"})
	if stage, _ := op.Current(); stage != "" {
		t.Errorf("in stage %q before the first", stage)
	}
	Enter(ctx, "make namespaces")
	About(ctx, Subject{Pod: "p1", Name: "a/b"})
	Enter(ctx, "set up network")
	Detail(ctx, func() string { return "half" })
	running := tracker.Running()
	if len(running) != 1 || !running[0].Running || running[0].Pod != "p1" || running[0].Detail != "half" {
		t.Fatalf("running: %+v", running)
	}
	if stage, _ := op.Current(); stage != "set up network" {
		t.Errorf("in stage %q", stage)
	}
	first, second := op.AddCall(), op.AddCall()
	second()
	if calls := tracker.Running()[0].Calls; calls != 1 {
		t.Errorf("%d calls of one wait", calls)
	}
	defer first()
	op.End(errors.New("set up network: no"))
	if len(tracker.Running()) != 0 {
		t.Error("still running")
	}
	ended := tracker.Ended()
	if len(ended) != 1 {
		t.Fatalf("ended: %+v", ended)
	}
	e := ended[0]
	if e.Running || e.Calls != 0 || e.Err == nil || e.What != "run pod" || !slices.Equal(names(e.Stages), []string{"make namespaces", "set up network"}) {
		t.Errorf("ended: %+v", e)
	}
	var sum time.Duration
	for _, s := range e.Stages {
		sum += s.Took
	}
	if sum > e.Took {
		t.Errorf("stages took %v of %v", sum, e.Took)
	}
}

func TestWhatIsKept(t *testing.T) {
	tracker := New()
	_, idle := tracker.Begin(t.Context(), "stop pod", Subject{})
	idle.End(nil)
	if got := tracker.Ended(); len(got) != 0 {
		t.Errorf("an operation without a stage is kept: %+v", got)
	}
	for i := range kept + 10 {
		tracker.Note("n", Subject{}, fmt.Sprint(i))
	}
	got := tracker.Ended()
	if len(got) != kept || got[0].Detail != "10" || got[kept-1].Detail != fmt.Sprint(kept+9) {
		t.Errorf("%d kept, from %s to %s", len(got), got[0].Detail, got[len(got)-1].Detail)
	}
}

func TestParallelOperationsHaveTheirOwnStages(t *testing.T) {
	tracker := New()
	outer, op := tracker.Begin(t.Context(), "remove pod", Subject{Pod: "p"})
	Enter(outer, "remove containers")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			ctx, op := tracker.Begin(outer, "remove container", Subject{Pod: "p", Container: fmt.Sprint(i)})
			Enter(ctx, "kill")
			Enter(ctx, "unmount")
			op.End(nil)
		})
	}
	group.Wait()
	op.End(nil)
	for _, e := range tracker.Ended() {
		want := []string{"kill", "unmount"}
		if e.What == "remove pod" {
			want = []string{"remove containers"}
		}
		if !slices.Equal(names(e.Stages), want) {
			t.Errorf("%s: stages %v", e.What, names(e.Stages))
		}
	}
}

func TestFollow(t *testing.T) {
	tracker := New()
	tracker.Note("before", Subject{}, "")
	_, op := tracker.Begin(t.Context(), "running", Subject{})
	defer op.End(nil)
	ctx, cancel := context.WithCancel(t.Context())
	emitted := make(chan string)
	ended := make(chan error, 1)
	go func() {
		ended <- tracker.Follow(ctx, func(e Entry) error {
			emitted <- e.What
			return nil
		})
	}()
	if got := <-emitted; got != "before" {
		t.Errorf("emitted %q", got)
	}
	if got := <-emitted; got != "running" {
		t.Errorf("emitted %q", got)
	}
	tracker.Note("after", Subject{}, "")
	if got := <-emitted; got != "after" {
		t.Errorf("emitted %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Follow = %v", err)
	}
	stop := errors.New("stop")
	if err := tracker.Follow(t.Context(), func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Follow = %v", err)
	}
	if len(tracker.followers) != 0 {
		t.Error("a follower remains registered")
	}
}

// A follower that does not read is dropped and blocks nothing.
func TestSlowFollower(t *testing.T) {
	tracker := New()
	tracker.Note("first", Subject{}, "")
	var once sync.Once
	err := tracker.Follow(t.Context(), func(Entry) error {
		once.Do(func() {
			for range backlog + 1 {
				tracker.Note("more", Subject{}, "")
			}
		})
		return nil
	})
	if !errors.Is(err, ErrLagged) {
		t.Errorf("Follow = %v", err)
	}
}

// observer counts its notifications.
type observer struct {
	mu    sync.Mutex
	began []string
	ended []Entry
}

type observed struct{}

func (o *observer) Begin(ctx context.Context, what string, _ Subject) context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.began = append(o.began, what)
	return context.WithValue(ctx, observed{}, what)
}

func (o *observer) End(ctx context.Context, e Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Value(observed{}) != e.What {
		e.What = "of another context"
	}
	o.ended = append(o.ended, e)
}

func TestObserverGetsEverything(t *testing.T) {
	o := &observer{}
	tracker := New(o)
	ctx, op := tracker.Begin(t.Context(), "a", Subject{})
	if ctx.Value(observed{}) != "a" {
		t.Error("the operation does not use the observer's context")
	}
	op.End(nil)
	_, op = tracker.Begin(t.Context(), "b", Subject{})
	op.End(errors.New("no"))
	if len(o.began) != 2 || len(o.ended) != 2 || o.ended[0].What != "a" || o.ended[1].What != "b" || o.ended[1].Err == nil {
		t.Errorf("began %v, ended %+v", o.began, o.ended)
	}
}

func TestNilTracker(t *testing.T) {
	var tracker *Tracker
	ctx, op := tracker.Begin(t.Context(), "a", Subject{})
	Enter(ctx, "x")
	About(ctx, Subject{})
	Detail(ctx, func() string { return "" })
	tracker.Note("b", Subject{}, "")
	if stage, _ := op.Current(); stage != "" {
		t.Errorf("stage %q", stage)
	}
	op.End(nil)
	Enter(t.Context(), "x")
}

// Code with a nil tracker does not enter stages of the operation that called it.
func TestNilTrackerWithinOperation(t *testing.T) {
	tracker := New()
	ctx, op := tracker.Begin(t.Context(), "a", Subject{})
	var none *Tracker
	inner, _ := none.Begin(ctx, "b", Subject{})
	Enter(inner, "x")
	op.End(errors.New("no"))
	if got := tracker.Ended()[0].Stages; len(got) != 0 {
		t.Errorf("stages %v", got)
	}
}
