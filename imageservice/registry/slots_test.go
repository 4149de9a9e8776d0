package registry

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// rack takes slots and records who got one, in order.
type rack struct {
	*slots

	mu  sync.Mutex // guards got
	got []string
}

func (r *rack) ask(t *testing.T, registry string) {
	t.Helper()
	go func() {
		if r.acquire(t.Context(), registry) == nil {
			r.mu.Lock()
			r.got = append(r.got, registry)
			r.mu.Unlock()
		}
	}()
	synctest.Wait()
}

// put gives a slot back and waits until somebody has it.
func (r *rack) put(registry string) {
	r.release(registry)
	synctest.Wait()
}

func (r *rack) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.got, want) {
		t.Errorf("slots went to %q, want %q", r.got, want)
	}
}

// One registry gets the whole limit and no more. Another one gets its first slot at once.
func TestSlotsOfManyRegistries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rack{slots: newSlots(2)}
		for range 4 {
			r.ask(t, "a")
		}
		r.expect(t, "a", "a")
		r.ask(t, "b")
		r.ask(t, "b")
		r.expect(t, "a", "a", "b")
		r.put("a") // two are held, which is the limit
		r.expect(t, "a", "a", "b")
		r.put("a") // b has one and waits, a waited before it but has none
		r.expect(t, "a", "a", "b", "a")
		r.put("a")
		r.put("b")
		r.expect(t, "a", "a", "b", "a", "a", "b")
		r.put("b")
		r.put("a")
		if len(r.held) != 0 || r.total != 0 || len(r.waiting) != 0 {
			t.Errorf("left: %v held, %d in all, %d waiting", r.held, r.total, len(r.waiting))
		}
	})
}

// The overcommit is limited, and a free slot goes to the registry that holds the fewest.
func TestSlotsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rack{slots: newSlots(1)}
		names := []string{"a", "b", "c", "d", "e", "a"}
		for _, name := range names {
			r.ask(t, name)
		}
		r.expect(t, "a", "b", "c", "d")
		r.put("b")
		r.expect(t, "a", "b", "c", "d", "e")
		r.setLimit(6)
		r.expect(t, "a", "b", "c", "d", "e", "a")
		for _, name := range []string{"a", "a", "c", "d", "e"} {
			r.put(name)
		}
		if len(r.held) != 0 || r.total != 0 {
			t.Errorf("left: %v held, %d in all", r.held, r.total)
		}
	})
}

// A caller that gives up waiting holds no slot.
func TestSlotIsNotLostByCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1)
		if err := s.acquire(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- s.acquire(ctx, "a") }()
		synctest.Wait()
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		s.release("a")
		if err := s.acquire(t.Context(), "a"); err != nil || s.total != 1 {
			t.Errorf("%v, %d held", err, s.total)
		}
	})
}

// Names below one domain share slots, because its owner can create any number of them.
func TestSiteOfRegistries(t *testing.T) {
	for registry, want := range map[string]string{
		"docker.io": "docker.io", "a1.evil.example": "evil.example", "A2.evil.example:5000": "evil.example",
		"127.0.0.1:5000": "127.0.0.1:5000", "localhost:5000": "localhost:5000", "registry": "registry",
	} {
		if got := siteOf(registry); got != want {
			t.Errorf("%s: %s, want %s", registry, got, want)
		}
	}
}
