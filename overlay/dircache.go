package overlay

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const maxOpenDirs = 64

// dirFD is an open directory of a layer under construction, shared by the
// parser and the writers.
type dirFD struct {
	fd   int
	refs atomic.Int32
}

func (d *dirFD) release() {
	if d.refs.Add(-1) == 0 {
		_ = unix.Close(d.fd)
	}
}

// dirCache keeps the directories open that were used last. A tar lists most
// files directory by directory, so few are enough. get and drop are for one
// goroutine; the handles may be released by any.
type dirCache struct {
	root int
	open map[*node]*dirFD
	ring []*node // in order of opening, the oldest is closed first
}

func newDirCache(root int) *dirCache { return &dirCache{root: root, open: map[*node]*dirFD{}} }

// get returns a handle that the caller releases.
func (c *dirCache) get(n *node) (*dirFD, error) {
	if d, ok := c.open[n]; ok {
		d.refs.Add(1)
		return d, nil
	}
	fd, err := openBeneath(c.root, n.name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", n.name, err)
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

// drop forgets one directory.
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

// close forgets all.
func (c *dirCache) close() {
	for _, d := range c.open {
		d.release()
	}
	c.open, c.ring = map[*node]*dirFD{}, nil
}
