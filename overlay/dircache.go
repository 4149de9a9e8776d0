package overlay

import (
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const maxOpenDirs = 64

// dirFD is an open directory of a layer under construction, shared by the parser and the writers.
type dirFD struct {
	fd   int
	refs atomic.Int32
}

func (d *dirFD) release() {
	if d.refs.Add(-1) == 0 {
		_ = unix.Close(d.fd)
	}
}

// dirCache keeps the directories open that were opened last. A tar lists most files directory by
// directory, so a few are enough. Only one goroutine may call get and drop; any goroutine may
// release a handle.
type dirCache struct {
	root   int
	budget *budget
	open   map[*node]*dirFD
	ring   []*node // in order of opening, the oldest is closed first
}

func newDirCache(root int, b *budget) *dirCache {
	return &dirCache{root: root, budget: b, open: map[*node]*dirFD{}}
}

// get returns a handle. The caller releases it.
func (c *dirCache) get(n *node) (*dirFD, error) {
	if d, ok := c.open[n]; ok {
		d.refs.Add(1)
		return d, nil
	}
	fd, err := c.openNode(n)
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", n.name(), err)
	}
	if len(c.ring) == maxOpenDirs {
		c.drop(c.ring[0])
	}
	d := &dirFD{fd: fd}
	d.refs.Store(2) // the cache's and the caller's
	c.open[n] = d
	c.ring = append(c.ring, n)
	return d, nil
}

// openNode opens a directory from the nearest one above it that is open.
func (c *dirCache) openNode(n *node) (int, error) {
	from, above := c.root, n.parent
	for ; above != nil; above = above.parent {
		if d, ok := c.open[above]; ok {
			from = d.fd
			break
		}
	}
	depth := n.depth
	if above != nil {
		depth -= above.depth
	}
	if err := c.budget.step(int(depth)); err != nil {
		return -1, err
	}
	return openBeneath(from, n.below(above), unix.O_RDONLY|unix.O_DIRECTORY)
}

// dropBelow drops a directory and everything below it.
func (c *dirCache) dropBelow(n *node) error {
	for _, r := range slices.Clone(c.ring) {
		if err := c.budget.step(max(0, int(r.depth-n.depth))); err != nil {
			return err
		}
		at := r
		for at != n && at.depth > n.depth {
			at = at.parent
		}
		if at == n {
			c.drop(r)
		}
	}
	return nil
}

// drop removes one directory from the cache.
func (c *dirCache) drop(n *node) {
	d, ok := c.open[n]
	if !ok {
		return
	}
	delete(c.open, n)
	for i, r := range c.ring {
		if r == n {
			c.ring = append(c.ring[:i], c.ring[i+1:]...)
			break
		}
	}
	d.release()
}

// close drops all directories.
func (c *dirCache) close() {
	for _, d := range c.open {
		d.release()
	}
	c.open, c.ring = map[*node]*dirFD{}, nil
}
