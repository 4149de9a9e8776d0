package events

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func event(id string) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{ContainerId: id}
}

func subscribe(t *testing.T, b *Broadcaster) *Subscription {
	t.Helper()
	sub, err := b.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// received forwards until the subscription ends, and returns the IDs of the events.
func received(t *testing.T, sub *Subscription) ([]string, error) {
	t.Helper()
	var got []string
	err := sub.Forward(t.Context(), func(ev *runtimeapi.ContainerEventResponse) error {
		got = append(got, ev.GetContainerId())
		return nil
	})
	return got, err
}

// A client gets the queued events when the daemon stops, which ends the stream's context.
func TestEndOfTheContextFlushesTheQueue(t *testing.T) {
	b := NewBroadcaster()
	sub := subscribe(t, b)
	for i := range 3 {
		if !b.Publish(event(strconv.Itoa(i))) {
			t.Error("an event for a subscriber counts as undelivered")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var sent []string
	err := sub.Forward(ctx, func(ev *runtimeapi.ContainerEventResponse) error {
		sent = append(sent, ev.GetContainerId())
		return nil
	})
	if err != nil || !slices.Equal(sent, []string{"0", "1", "2"}) {
		t.Errorf("events sent = %v, %v, want all three", sent, err)
	}
	if b.Publish(event("late")) {
		t.Error("an event counts as delivered without a subscriber")
	}
}

func TestForwardReturnsTheErrorOfSend(t *testing.T) {
	b := NewBroadcaster()
	sub := subscribe(t, b)
	b.Publish(event("a"))
	b.Publish(event("b"))
	broken := errors.New("broken pipe")
	calls := 0
	err := sub.Forward(t.Context(), func(*runtimeapi.ContainerEventResponse) error { calls++; return broken })
	if !errors.Is(err, broken) || calls != 1 {
		t.Errorf("Forward = %v after %d calls of send, want its error after one", err, calls)
	}
	sub.Cancel()
	sub.Cancel() // again, as a deferred call does
	if b.Wanted() {
		t.Error("a cancelled subscription still counts")
	}
}

func TestLaggingSubscriberIsDisconnected(t *testing.T) {
	b := NewBroadcaster()
	slow := subscribe(t, b)
	for range backlog + 1 {
		b.Publish(event("x"))
	}
	got, err := received(t, slow)
	if len(got) != backlog || !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("slow subscriber got %d events, %v; want %d and ErrResourceExhausted", len(got), err, backlog)
	}
	if b.Wanted() {
		t.Error("a disconnected subscriber still counts")
	}
}

func TestClose(t *testing.T) {
	b := NewBroadcaster()
	sub := subscribe(t, b)
	b.Publish(event("last"))
	b.Close()
	got, err := received(t, sub)
	if !slices.Equal(got, []string{"last"}) || !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("events after Close = %v, %v, want the queued one and ErrUnavailable", got, err)
	}
	if _, err := b.Subscribe(); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Subscribe after Close = %v, want ErrUnavailable", err)
	}
}

// Every subscriber during the gap gets the events since its beginning once and in order. Later
// subscribers get only new events.
func TestGap(t *testing.T) {
	b := NewBroadcaster()
	b.Publish(event("before"))
	b.OpenGap()
	if !b.Wanted() {
		t.Error("nobody wants the events of a gap")
	}
	for i := range backlog + 2 {
		b.Publish(event(strconv.Itoa(i)))
	}
	for range 2 {
		sub := subscribe(t, b)
		b.Publish(event("live"))
		sub.Cancel()
		got, _ := received(t, sub)
		if len(got) != backlog+1 || got[len(got)-1] != "live" {
			t.Fatalf("%d events, the last %q; want %d and live", len(got), got[len(got)-1], backlog+1)
		}
		if first, _ := strconv.Atoi(got[0]); first < 2 {
			t.Errorf("the oldest event is %s, want the oldest two dropped", got[0])
		}
	}
	b.openGap(time.Now())
	sub := subscribe(t, b)
	b.Publish(event("after"))
	sub.Cancel()
	if got, _ := received(t, sub); !slices.Equal(got, []string{"after"}) {
		t.Errorf("events after the gap = %v, want only the new one", got)
	}
}
