package keeper

import (
	"context"
	"errors"
	"fmt"
	"sort"

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
		if err = m.Into(&body); err == nil {
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
}

func (c *Client) release(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
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
	for _, k := range c.allHeld() {
		_, _, err := l.call(ctx, wire.OpAdopt, k.body, k.fds)
		k.fds.Close()
		switch {
		case err == nil:
		case errors.Is(asError(err), errdefs.ErrNotFound):
			c.release(k.body.ID)
		case errors.Is(err, errLost), ctx.Err() != nil:
			return fmt.Errorf("hand back container %s: %w", k.body.ID, err)
		default:
			klog.FromContext(ctx).Error(err, "Hand back container", "container", k.body.ID)
		}
	}
	if _, _, err := l.call(ctx, wire.OpAdoptDone, nil, nil); err != nil {
		return fmt.Errorf("hand back containers: %w", err)
	}
	return nil
}

// allHeld duplicates every copy, so that none is closed while it is sent.
func (c *Client) allHeld() []*custody {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*custody
	for id, k := range c.held {
		fds, err := k.fds.Dup()
		if err != nil {
			klog.Background().Error(err, "Copy descriptors", "container", id)
			continue
		}
		all = append(all, &custody{k.body, fds})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].body.ID < all[j].body.ID })
	return all
}
