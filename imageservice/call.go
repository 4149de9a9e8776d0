package imageservice

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// calls runs functions by key. A second caller with a key joins the running call, or gets the
// result that somebody still holds; see callArgs.keep. I is the information about a call. The zero
// value is ready for use. drop is set before first use.
type calls[V, I any] struct {
	drop func(V) // disposes of a result after its last holder has released it; may be nil

	running sync.WaitGroup
	mu      sync.Mutex // guards the fields below and the holders of all calls
	byKey   map[string]*call[V, I]
	closed  bool
}

// call is one run of a function, with its result.
type call[V, I any] struct {
	info   I
	group  *calls[V, I]
	key    string
	cancel context.CancelFunc
	done   chan struct{} // closed after value and err are set

	holders int
	value   V
	err     error
}

// callArgs describes a call to begin if none with its key is running.
type callArgs[V, I any] struct {
	key  string
	info I
	// keep continues the call after every holder has released it. Without keep, it is cancelled
	// then. The result is only for holders that joined while it ran: a later join begins a new
	// call.
	keep bool
	run  func(ctx context.Context, info I) (V, error)
}

// join returns the call with a key. The caller holds it and must release it. started reports
// whether join began it. Error: errdefs.ErrUnavailable after close.
func (g *calls[V, I]) join(ctx context.Context, a callArgs[V, I]) (c *call[V, I], started bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false, fmt.Errorf("image service is closed: %w", errdefs.ErrUnavailable)
	}
	if c, ok := g.byKey[a.key]; ok {
		c.holders++
		return c, false, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c = &call[V, I]{info: a.info, group: g, key: a.key, cancel: cancel, done: make(chan struct{}), holders: 1}
	if a.keep {
		c.holders++
	}
	if g.byKey == nil {
		g.byKey = make(map[string]*call[V, I])
	}
	g.byKey[a.key] = c
	g.running.Add(1)
	go c.run(ctx, a)
	return c, true, nil
}

func (c *call[V, I]) run(ctx context.Context, a callArgs[V, I]) {
	defer c.group.running.Done()
	defer c.cancel()
	value, err := a.run(ctx, c.info)
	c.group.mu.Lock()
	c.value, c.err = value, err
	close(c.done)
	if err != nil || a.keep {
		c.forget()
	}
	orphaned := c.holders == 0
	c.group.mu.Unlock()
	if orphaned {
		c.dropValue()
	}
	if a.keep {
		c.release()
	}
}

// wait returns the result, or ctx's error if that ends first.
func (c *call[V, I]) wait(ctx context.Context) (V, error) {
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// release ends the caller's hold. If the group has a drop, the result must not be used afterwards.
func (c *call[V, I]) release() {
	c.group.mu.Lock()
	c.holders--
	last := c.holders == 0
	finished := false
	if last {
		c.forget()
		select {
		case <-c.done:
			finished = true
		default:
		}
	}
	c.group.mu.Unlock()
	if last {
		c.cancel()
	}
	if finished {
		c.dropValue()
	}
}

// forget makes the next join begin a new call. The group's mu is held.
func (c *call[V, I]) forget() {
	if c.group.byKey[c.key] == c {
		delete(c.group.byKey, c.key)
	}
}

func (c *call[V, I]) dropValue() {
	if c.err == nil && c.group.drop != nil {
		c.group.drop(c.value)
	}
}

// close cancels every call, waits for them, and refuses new ones.
func (g *calls[V, I]) close() {
	g.mu.Lock()
	g.closed = true
	for _, c := range g.byKey {
		c.cancel()
	}
	g.mu.Unlock()
	g.running.Wait()
}
