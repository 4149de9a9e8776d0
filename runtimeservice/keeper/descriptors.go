package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// storedDescriptors are copies of one container's descriptors. The daemon stores them for the next
// keeper.
type storedDescriptors struct {
	body wire.Descriptors
	fds  wire.FDs
}

// pushed handles the messages that the keeper sends on its own.
func (c *Client) pushed(m wire.Message, fds wire.FDs) {
	var err error
	switch m.Op {
	case wire.OpDescriptors:
		var body wire.Descriptors
		switch err = m.Into(&body); {
		case err == nil && m.Error != nil:
			c.lacks(body.ID, m.Error)
		case err == nil:
			c.keep(&storedDescriptors{body, fds})
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
		klog.Background().Error(err, "Cannot decode message from keeper", "op", m.Op)
	}
}

func (c *Client) keep(k *storedDescriptors) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(k.body.ID)
	c.held[k.body.ID] = k
	delete(c.lacking, k.body.ID)
}

// lacks records that the daemon had no free descriptors for the copies of one container. They are
// needed only if the keeper dies, so nothing else changes.
func (c *Client) lacks(id string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lacking[id] = true
	if c.fetching || c.closed {
		return
	}
	c.fetching = true
	klog.Background().Error(err, "Too few free file descriptors to store copies of a container's descriptors; retrying", "container", id)
	go c.fetchCopies()
}

// retryCopies is the interval between requests for missing copies.
const retryCopies = time.Second

// fetchCopies requests the missing copies until none is missing or the client is closed.
func (c *Client) fetchCopies() {
	for {
		select {
		case <-c.end:
			return
		case <-time.After(retryCopies):
		}
		for id := c.lackingOne(); id != ""; id = c.lackingOne() {
			err := c.again(context.Background(), wire.OpCopies, wire.Target{ID: id}, nil)
			if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // an older keeper, which has no such request
				c.giveUpCopies(id)
			}
			if c.isLacking(id) {
				break // still too few free descriptors
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

// hasAllCopies reports whether no copy is missing. If so, it also marks fetching as ended.
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

// drop closes the copies of one container. c.mu is held.
func (c *Client) drop(id string) {
	if k := c.held[id]; k != nil {
		k.fds.Close()
		delete(c.held, id)
	}
}

// handBack returns the stored descriptors to a new keeper, for the containers of the keeper that
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
			klog.FromContext(ctx).Error(err, "Handing a container back to the keeper failed", "container", id)
		}
	}
	if _, _, err := l.call(ctx, wire.OpAdoptDone, nil, nil); err != nil {
		return fmt.Errorf("hand back containers: %w", err)
	}
	return nil
}

// handPause is the interval between attempts to hand back a container while the daemon or the
// keeper lacks free descriptors.
const handPause = 100 * time.Millisecond

// handBackOne hands one container back. While descriptors are lacking, it retries until ctx ends: a
// container that is not handed back loses its log.
func (c *Client) handBackOne(ctx context.Context, l *link, id string) error {
	for {
		k, err := c.copyOf(id)
		if err == nil && k == nil {
			return nil // released in the meantime
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

// copyOf duplicates the copies of one container, so that none is closed while it is being sent. It
// returns nil if there are none.
func (c *Client) copyOf(id string) (*storedDescriptors, error) {
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
	return &storedDescriptors{k.body, fds}, nil
}

// Init returns a pidfd of the container's first process, which the caller closes. It returns nil if
// the daemon has no copy of the keeper's, because too few descriptors were free.
func (c *Client) Init(id string) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.held[id]
	if k == nil {
		return nil, nil
	}
	fd, ok := k.fds[wire.FDPid]
	if !ok {
		return nil, nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(dup), "init"), nil
}

// allHeld returns the IDs of the containers with stored descriptors.
func (c *Client) allHeld() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.held))
}
