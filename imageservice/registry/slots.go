package registry

import (
	"context"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/publicsuffix"
)

// slotOvercommit is the maximum number of transfers from many registries, in multiples of the
// limit. It bounds the memory of the node: a transfer of a layer has a decompressor and its
// buffers.
const slotOvercommit = 4

// slots limits the transfers of all pulls. A registry without a transfer gets a slot although the
// limit is reached, and the next free slot goes to the registry that holds the fewest: slow
// registries do not delay pulls from others.
type slots struct {
	mu      sync.Mutex // guards the fields below
	limit   int
	total   int            // slots held
	held    map[string]int // by registry
	waiting []*slotWaiter  // oldest first
}

type slotWaiter struct {
	registry string
	ready    chan struct{} // closed when the waiter holds a slot
}

func newSlots(limit int) *slots { return &slots{limit: limit, held: make(map[string]int)} }

// acquire waits for a slot. After a nil error the caller calls release.
func (s *slots) acquire(ctx context.Context, registry string) error {
	w := &slotWaiter{registry: registry, ready: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.grant()
	s.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, w); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	} else {
		s.free(registry)
	}
	return context.Cause(ctx)
}

func (s *slots) release(registry string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free(registry)
}

// setLimit changes the limit. Running transfers beyond a lower limit continue.
func (s *slots) setLimit(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.grant()
}

// free returns a slot and grants it to the next waiter. s.mu is held.
func (s *slots) free(registry string) {
	s.total--
	if s.held[registry]--; s.held[registry] == 0 {
		delete(s.held, registry)
	}
	s.grant()
}

// grant gives slots to the waiters that may have one. s.mu is held.
func (s *slots) grant() {
	for {
		next := -1
		for i, w := range s.waiting {
			if s.admits(w.registry) && (next < 0 || s.held[w.registry] < s.held[s.waiting[next].registry]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.total++
		s.held[w.registry]++
		close(w.ready)
	}
}

func (s *slots) admits(registry string) bool {
	return s.total < s.limit || s.held[registry] == 0 && s.total < slotOvercommit*s.limit
}

// siteOf returns the name under which the slots count a registry: its registrable domain, because
// the owner can make any number of names below it, or else its host and port.
func siteOf(registry string) string {
	u := serverName(registry)
	if site, err := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(u)); err == nil {
		return site
	}
	return registry
}
