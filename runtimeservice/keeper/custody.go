package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"k8s.io/klog/v2"
)

// custody is the copy of one container's descriptors, kept for the next
// keeper.
type custody struct {
	body wire.Custody
	fds  wire.FDs
}

// pushed takes what the keeper sends without being asked.
func (c *Client) pushed(m wire.Message, fds wire.FDs) {
	var err error
	switch m.Op {
	case wire.OpCustody:
		var body wire.Custody
		switch err = m.Into(&body); {
		case err == nil && m.Error != nil:
			c.lacks(body.ID, m.Error)
		case err == nil:
			c.keep(&custody{body, fds})
			return
		}
	case wire.OpRelease:
		var t wire.Target
		if err = m.Into(&t); err == nil {
			c.release(t.ID)
		}
	case wire.OpExit:
		var st wire.State
		if err = m.Into(&st); err == nil && st.Exit != nil {
			c.release(st.ID)
			c.events.put(Event{ID: st.ID, Exit: Exit(*st.Exit)})
		}
	}
	fds.Close()
	if err != nil {
		klog.Background().Error(err, "Keeper sent what cannot be read", "op", m.Op)
	}
}

func (c *Client) keep(k *custody) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(k.body.ID)
	c.held[k.body.ID] = k
	delete(c.lacking, k.body.ID)
}

// lacks notes copies that this process had no free descriptors for. The keeper goes
// on without them: they are only needed if it dies.
func (c *Client) lacks(id string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lacking[id] = true
	if c.fetching || c.closed {
		return
	}
	c.fetching = true
	klog.Background().Error(err, "No copies of a container's descriptors until there are free ones", "container", id)
	go c.fetchCopies()
}

// awaitDescriptors is how often copies are asked for that there was no room for.
const awaitDescriptors = time.Second

// fetchCopies asks for the copies that are lacking until there are none, or Close.
func (c *Client) fetchCopies() {
	for {
		select {
		case <-c.end:
			return
		case <-time.After(awaitDescriptors):
		}
		for id := c.lackingOne(); id != ""; id = c.lackingOne() {
			err := c.again(context.Background(), wire.OpCopies, wire.Target{ID: id}, nil)
			if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // an older keeper does not know the request
				c.giveUpCopies(id)
			}
			if c.isLacking(id) {
				break // there is still no room
			}
		}
		if c.hasAllCopies() {
			return
		}
	}
}

func (c *Client) lackingOne() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.lacking {
		return id
	}
	return ""
}

func (c *Client) isLacking(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lacking[id]
}

func (c *Client) giveUpCopies(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.lacking, id)
}

// hasAllCopies ends fetching if nothing is lacking.
func (c *Client) hasAllCopies() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fetching = len(c.lacking) > 0
	return !c.fetching
}

func (c *Client) release(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
	delete(c.lacking, id)
}

// drop closes a container's copies. c.mu is held.
func (c *Client) drop(id string) {
	if k := c.held[id]; k != nil {
		k.fds.Close()
		delete(c.held, id)
	}
}

// handBack gives a new keeper the descriptors of the containers whose keeper
// died.
func (c *Client) handBack(ctx context.Context, l *link) error {
	if len(l.hello.Orphans) == 0 {
		return nil
	}
	for _, id := range c.allHeld() {
		err := c.handBackOne(ctx, l, id)
		switch {
		case err == nil:
		case errors.Is(asError(err), errdefs.ErrNotFound):
			c.release(id)
		case errors.Is(err, errLost), ctx.Err() != nil:
			return fmt.Errorf("hand back container %s: %w", id, err)
		default:
			klog.FromContext(ctx).Error(err, "Hand back container", "container", id)
		}
	}
	if _, _, err := l.call(ctx, wire.OpAdoptDone, nil, nil); err != nil {
		return fmt.Errorf("hand back containers: %w", err)
	}
	return nil
}

// handPause is how often a container is handed back for which one of the two sides
// has no free descriptors.
const handPause = 100 * time.Millisecond

// handBackOne hands one container back. Until ctx ends it waits for descriptors: a
// container that is not handed back loses its log.
func (c *Client) handBackOne(ctx context.Context, l *link, id string) error {
	for {
		k, err := c.copyOf(id)
		if err == nil && k == nil {
			return nil // released meanwhile
		}
		if err == nil {
			_, _, err = l.call(ctx, wire.OpAdopt, k.body, k.fds)
			k.fds.Close()
		}
		if !wire.Exhausted(err) && !errors.Is(asError(err), errdefs.ErrResourceExhausted) {
			return err
		}
		select {
		case <-time.After(handPause):
		case <-ctx.Done():
			return err
		}
	}
}

// copyOf duplicates the copies of one container, so that none is closed while it is
// sent. It is nil if there are none.
func (c *Client) copyOf(id string) (*custody, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.held[id]
	if k == nil {
		return nil, nil
	}
	fds, err := k.fds.Dup()
	if err != nil {
		return nil, nameLimit(err)
	}
	return &custody{k.body, fds}, nil
}

// allHeld returns the containers that there are copies of.
func (c *Client) allHeld() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.held))
}
