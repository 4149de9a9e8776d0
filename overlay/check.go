package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// CheckOptions are the arguments of Check.
type CheckOptions struct {
	// Content also reads the tar of every layer and compares its digest and size. This reads the
	// whole store.
	Content bool
}

// Problem is one finding of Check.
type Problem struct {
	Path string // relative to the data root
	What string
}

// Check compares the store on disk with the invariants of the package, and with the state in
// memory. Work in progress is no problem: drafts, layers being created or removed, and what
// SweepAbandoned will remove. If the store changes meanwhile, Check may return problems that do not
// exist. An error means that Check itself did not finish.
func (s *Store) Check(ctx context.Context, o CheckOptions) ([]Problem, error) {
	c := s.newChecker()
	for _, step := range []func() error{c.layers, c.writables, c.directories, c.links, c.tmp, c.mounts} {
		if err := ctx.Err(); err != nil {
			return c.problems, fmt.Errorf("check layer store: %w", err)
		}
		if err := step(); err != nil {
			return c.problems, fmt.Errorf("check layer store: %w", err)
		}
	}
	if o.Content {
		for _, l := range c.known {
			if err := c.content(ctx, l); err != nil {
				return c.problems, fmt.Errorf("check layer store: %w", err)
			}
		}
	}
	slices.SortFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.What, b.What))
	})
	return c.problems, nil
}

// checker is one run of Check. It first collects the entries that claim directories, then checks
// the directories.
type checker struct {
	s        *Store
	known    map[digest.Digest]Layer
	rws      map[string]RW
	busy     map[string]bool
	claims   map[string]string // directory of overlay2 → entry that names it
	below    map[string]string // directory of overlay2 → its lower directory
	used     map[string]bool   // directories that the lower files of writable layers name
	problems []Problem
}

func (s *Store) newChecker() *checker {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &checker{
		s: s, known: map[digest.Digest]Layer{}, rws: map[string]RW{}, busy: map[string]bool{},
		claims: map[string]string{}, below: map[string]string{}, used: s.lowersLocked(),
	}
	for id, l := range s.layers {
		c.known[id] = l
	}
	for id, w := range s.rws {
		c.rws[id] = w.RW
	}
	for id := range s.busy {
		c.busy[id] = true
	}
	return c
}

func (c *checker) report(path, format string, args ...any) {
	if rel, err := filepath.Rel(c.s.paths.root, path); err == nil {
		path = rel
	}
	c.problems = append(c.problems, Problem{Path: path, What: fmt.Sprintf(format, args...)})
}

func (c *checker) claim(id, by, below string) {
	if other := c.claims[id]; other != "" {
		c.report(by, "names overlay2/%s, as %s does", id, other)
		return
	}
	c.claims[id] = by
	c.below[id] = below
}

// layers checks the entries of read-only layers.
func (c *checker) layers() error {
	names, err := readNames(c.s.paths.layers())
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, name := range names {
		path := filepath.Join(c.s.paths.layers(), name)
		if !c.s.names.hex.MatchString(name) {
			c.report(path, "is not the entry of a layer")
			if id, err := readString(filepath.Join(path, cacheIDName)); err == nil {
				c.claim(id, path, "")
			}
			continue
		}
		id := digest.NewDigestFromEncoded(digest.SHA256, name)
		seen[id] = true
		c.layer(id, path)
	}
	for id := range c.known {
		if !seen[id] {
			c.report(c.s.paths.layer(id), "is missing on disk")
		}
	}
	return nil
}

func (c *checker) layer(id digest.Digest, path string) {
	l, err := c.s.readLayer(id)
	if err != nil {
		c.report(path, "%v", err)
	}
	if l.CacheID == "" {
		return
	}
	below := ""
	if l.Parent != "" {
		parent, err := c.s.readLayer(l.Parent)
		if err != nil {
			c.report(path, "its parent %s cannot be read: %v", l.Parent, err)
		}
		below = parent.CacheID
	}
	c.claim(l.CacheID, path, below)
	if err == nil && c.known[id] != l {
		c.report(path, "differs from what the store has in memory")
	}
	if _, err := os.Stat(filepath.Join(path, tarSplitName)); err != nil {
		c.report(path, "has no %s", tarSplitName)
	}
	allowed := []string{cacheIDName, diffIDName, parentName, sizeName, tarSplitName}
	c.strangers(path, allowed)
}

func (c *checker) strangers(dir string, allowed []string) {
	names, err := readNames(dir)
	if err != nil {
		c.report(dir, "%v", err)
	}
	for _, n := range names {
		if !slices.Contains(allowed, n) {
			c.report(filepath.Join(dir, n), "is not part of the layout")
		}
	}
}

// writables checks the entries of writable layers.
func (c *checker) writables() error {
	names, err := readNames(c.s.paths.mounts())
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, id := range names {
		seen[id] = true
		path := c.s.paths.mount(id)
		rw, err := c.s.readWritable(id)
		if err != nil {
			c.report(path, "%v", err)
			continue
		}
		if c.rws[id] != rw {
			c.report(path, "differs from what the store has in memory")
		}
		parent, ok := c.known[rw.Parent]
		if !ok && rw.Parent != "" {
			c.report(path, "its parent %s is missing", rw.Parent)
		}
		below := parent.CacheID
		if rw.InitID != "" {
			c.claim(rw.InitID, path, below)
			below = rw.InitID
		}
		c.claim(rw.MountID, path, below)
		c.strangers(path, []string{mountIDName, initIDName, parentName})
	}
	for id := range c.rws {
		if !seen[id] {
			c.report(c.s.paths.mount(id), "is missing on disk")
		}
	}
	return nil
}

// directories checks overlay2 against the entries that name its directories.
func (c *checker) directories() error {
	names, err := readNames(c.s.paths.overlay())
	if err != nil {
		return err
	}
	there := map[string]bool{linksName: true}
	for _, name := range names {
		there[name] = true
		if name != linksName && !c.busy[name] && c.claims[name] == "" && !c.used[name] {
			c.report(c.s.paths.dir(name), "no layer and no container refers to it")
		}
	}
	for id, by := range c.claims {
		if !there[id] {
			c.report(by, "directory overlay2/%s is missing", id)
			continue
		}
		c.directory(id)
	}
	return nil
}

func (c *checker) directory(id string) {
	dir := c.s.paths.dir(id)
	var st unix.Stat_t
	if err := unix.Lstat(c.s.paths.diff(id), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.report(dir, "has no directory %s", diffName)
	}
	link, err := readString(filepath.Join(dir, linkName))
	if err != nil {
		c.report(dir, "has no file %s", linkName)
	} else if target, ok := c.s.linkTarget(link); !ok || target != id {
		c.report(filepath.Join(dir, linkName), "short name %q does not link to this directory", link)
	}
	c.lower(id)
	if _, err := os.Stat(filepath.Join(dir, committedName)); err == nil && c.isUpper(id) {
		c.report(dir, "is writable and marked %s", committedName)
	}
	c.strangers(dir, []string{diffName, linkName, lowerName, workName, mergedName, committedName})
}

func (c *checker) isUpper(id string) bool {
	for _, rw := range c.rws {
		if rw.MountID == id {
			return true
		}
	}
	return false
}

func (c *checker) lower(id string) {
	path := filepath.Join(c.s.paths.dir(id), lowerName)
	got, err := readString(path)
	below := c.below[id]
	if below == "" {
		if !errors.Is(err, os.ErrNotExist) && !strings.HasSuffix(c.claims[id], "-removing") {
			c.report(path, "exists, but no layer is below")
		}
		return
	}
	want, werr := c.s.lowerAbove(below)
	if err = errors.Join(err, werr); err != nil {
		c.report(path, "%v", err)
	} else if got != want {
		c.report(path, "is %q, expected %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(c.s.paths.dir(id), workName)); err != nil {
		c.report(c.s.paths.dir(id), "has no directory %s", workName)
	}
}

// links checks the short names.
func (c *checker) links() error {
	names, err := readNames(c.s.paths.links())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(c.s.paths.links(), name)
		id, ok := c.s.linkTarget(name)
		switch {
		case !ok:
			// BuildKit's directories in an adopted tree have other names.
			if _, err := os.Stat(path); err != nil || !c.s.names.link.MatchString(name) {
				c.report(path, "is not the short name of a directory")
			}
		case c.busy[id], c.used[id] && c.claims[id] == "":
		case c.claims[id] == "":
			c.report(path, "links to overlay2/%s, which nothing refers to", id)
		default:
			if link, err := readString(filepath.Join(c.s.paths.dir(id), linkName)); err == nil && link != name {
				c.report(path, "is a second short name of overlay2/%s", id)
			}
		}
	}
	return nil
}

func (c *checker) tmp() error {
	names, err := readNames(c.s.paths.tmp())
	if err != nil {
		return err
	}
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, writeSet); !ok || !c.busy[id] {
			c.report(filepath.Join(c.s.paths.tmp(), name), "is a leftover of an interrupted write")
		}
	}
	return nil
}

// mounts finds mounts that belong to no writable layer.
func (c *checker) mounts() error {
	root, err := filepath.EvalSymlinks(c.s.paths.overlay())
	if err != nil {
		return err
	}
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return err
	}
	mine := map[string]int{}
	for _, rw := range c.rws {
		mine[filepath.Join(root, rw.MountID, mergedName)] = 1
	}
	for _, m := range found {
		if m.Mountpoint == root {
			continue
		}
		if mine[m.Mountpoint]--; mine[m.Mountpoint] < 0 {
			c.report(m.Mountpoint, "is a mount that belongs to no container")
		}
	}
	return nil
}

// content verifies that a layer still gives the tar that it was made from.
func (c *checker) content(ctx context.Context, l Layer) error {
	path := c.s.paths.layer(l.ID)
	size, err := layerSize(ctx, c.s.paths.diff(l.CacheID))
	if err != nil {
		c.report(path, "measure layer: %v", err)
	} else if size != l.Size {
		c.report(path, "size is %d, the files have %d bytes", l.Size, size)
	}
	r, err := c.s.TarStream(ctx, l.ID)
	if err != nil {
		c.report(path, "%v", err)
		return ctx.Err()
	}
	defer func() { _ = r.Close() }()
	h := digest.SHA256.Digester()
	if _, err := io.Copy(h.Hash(), r); err != nil {
		c.report(path, "%v", err)
		return ctx.Err()
	}
	if got := h.Digest(); got != l.DiffID {
		c.report(path, "diff ID is %s, the files give %s", l.DiffID, got)
	}
	return nil
}
