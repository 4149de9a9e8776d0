package imageservice

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// flights runs functions by key. Whoever asks for a key that is running, or whose result somebody still holds, shares it (but see flightArgs.keep). I is what is known about a flight
// while it runs. The zero value is ready; drop is set before first use.
type flights[V, I any] struct {
	drop func(V) // gives a result back when its last holder has released it; may be nil

	running sync.WaitGroup
	mu      sync.Mutex // guards the fields below and the holders of all flights
	byKey   map[string]*flight[V, I]
	closed  bool
}

// flight is one run of a function and its result.
type flight[V, I any] struct {
	info   I
	group  *flights[V, I]
	key    string
	cancel context.CancelFunc
	done   chan struct{} // closed when value and err are set

	holders int
	value   V
	err     error
}

// flightArgs says what to run when a key is not in the air.
type flightArgs[V, I any] struct {
	key  string
	info I
	// keep makes the flight go on when everybody has released it, which else cancels it. Its result is for those who joined
	// while it ran: a later join starts anew.
	keep bool
	run  func(ctx context.Context, info I) (V, error)
}

// join returns the flight of a key, held for the caller, who must release it. started tells whether this call set it off.
// Error: errdefs.ErrUnavailable after close.
func (g *flights[V, I]) join(ctx context.Context, a flightArgs[V, I]) (f *flight[V, I], started bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false, fmt.Errorf("image service is closed: %w", errdefs.ErrUnavailable)
	}
	if f, ok := g.byKey[a.key]; ok {
		f.holders++
		return f, false, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f = &flight[V, I]{info: a.info, group: g, key: a.key, cancel: cancel, done: make(chan struct{}), holders: 1}
	if a.keep {
		f.holders++
	}
	if g.byKey == nil {
		g.byKey = make(map[string]*flight[V, I])
	}
	g.byKey[a.key] = f
	g.running.Add(1)
	go f.fly(ctx, a)
	return f, true, nil
}

func (f *flight[V, I]) fly(ctx context.Context, a flightArgs[V, I]) {
	defer f.group.running.Done()
	defer f.cancel()
	value, err := a.run(ctx, f.info)
	f.group.mu.Lock()
	f.value, f.err = value, err
	close(f.done)
	if err != nil || a.keep {
		f.leaveMap()
	}
	orphaned := f.holders == 0
	f.group.mu.Unlock()
	if orphaned {
		f.dropValue()
	}
	if a.keep {
		f.release()
	}
}

// wait returns the result, or ctx's error when that ends first.
func (f *flight[V, I]) wait(ctx context.Context) (V, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// release ends the caller's hold. The result must not be used afterwards when the group has a drop.
func (f *flight[V, I]) release() {
	f.group.mu.Lock()
	f.holders--
	last := f.holders == 0
	finished := false
	if last {
		f.leaveMap()
		select {
		case <-f.done:
			finished = true
		default:
		}
	}
	f.group.mu.Unlock()
	if last {
		f.cancel()
	}
	if finished {
		f.dropValue()
	}
}

// leaveMap makes the next join start anew. The group's mu is held.
func (f *flight[V, I]) leaveMap() {
	if f.group.byKey[f.key] == f {
		delete(f.group.byKey, f.key)
	}
}

func (f *flight[V, I]) dropValue() {
	if f.err == nil && f.group.drop != nil {
		f.group.drop(f.value)
	}
}

// infos returns what is known about the flights in the air.
func (g *flights[V, I]) infos() []I {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]I, 0, len(g.byKey))
	for _, f := range g.byKey {
		list = append(list, f.info)
	}
	return list
}

// close cancels every flight, waits for them, and refuses new ones.
func (g *flights[V, I]) close() {
	g.mu.Lock()
	g.closed = true
	for _, f := range g.byKey {
		f.cancel()
	}
	g.mu.Unlock()
	g.running.Wait()
}
