package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stack is a growing stack of layers. For each directory that a tar above only implies, it caches
// the layers that make up the directory. So a layer is looked up once for each directory,
// independent of how many layers imply it. One goroutine may use it at a time.
type stack struct {
	paths layout
	ids   []string // directories of overlay2, base first
	roots []int    // their open diff directories; the last ones are opened when needed
	top   stackDir
	count *lookups
}

// stackDir is a directory of a stack, with the lookups done so far.
type stackDir struct {
	parts    []int // indexes of the roots that make it up, base first; none if the stack shows no directory
	seen     int   // number of roots that were looked up, from the base up
	children map[string]*stackDir
}

// newStack returns the stack of the layers below, top first. The caller closes it.
func (s *Store) newStack(below []string, count *lookups) *stack {
	st := &stack{paths: s.paths, ids: slices.Clone(below), count: count}
	slices.Reverse(st.ids)
	return st
}

// push adds a layer at the top.
func (s *stack) push(id string) { s.ids = append(s.ids, id) }

// open opens the layers that were pushed since the last call.
func (s *stack) open() error {
	for _, id := range s.ids[len(s.roots):] {
		fd, err := unix.Open(s.paths.diff(id), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: s.paths.diff(id), Err: err}
		}
		s.top.parts = append(s.top.parts, len(s.roots))
		s.roots = append(s.roots, fd)
	}
	return nil
}

func (s *stack) close() {
	for _, fd := range s.roots {
		_ = unix.Close(fd)
	}
}

// child looks up the directory p in the layers that make up the directory above it. base is the
// last component of p.
func (s *stack) child(above *stackDir, base, p string) (*stackDir, error) {
	d := above.children[base]
	if d == nil {
		d = &stackDir{}
		if above.children == nil {
			above.children = map[string]*stackDir{}
		}
		above.children[base] = d
	}
	depth := strings.Count(p, "/")
	first, _ := slices.BinarySearch(above.parts, d.seen)
	for _, i := range above.parts[first:] {
		if err := s.count.take(depth); err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err := fstatBeneath(s.roots[i], p, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR: // it hides the layers below
			d.parts, d.children = nil, nil
		case isOpaque(s.roots[i], p):
			d.parts, d.children = []int{i}, nil
		default:
			d.parts = append(d.parts, i)
		}
	}
	d.seen = len(s.roots)
	return d, nil
}

// inherit copies the owner, mode, attributes and times of a layer's implied directories from the
// layers below, if they exist there. id names the layer's directory, dirs is its root.
func (s *stack) inherit(ctx context.Context, id string, dirs *impliedDir) error {
	if len(s.ids) == 0 || !dirs.implied && len(dirs.children) == 0 {
		return nil
	}
	if err := s.open(); err != nil {
		return err
	}
	target, err := unix.Open(s.paths.diff(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: s.paths.diff(id), Err: err}
	}
	defer func() { _ = unix.Close(target) }()
	to, err := newLadder(target)
	if err != nil {
		return err
	}
	defer to.close()
	h := heir{ctx: ctx, stack: s, to: to}
	return h.directory(".", dirs, &s.top)
}

// heir copies the metadata of implied directories from the layers below.
type heir struct {
	ctx   context.Context // of one call, which this value does not outlive
	stack *stack
	to    *ladder // at the directory that is being changed
}

// directory copies the metadata of the directory p and of those below it. from is the stack's
// directory p.
func (h *heir) directory(p string, d *impliedDir, from *stackDir) error {
	if err := h.ctx.Err(); err != nil {
		return err
	}
	if d.implied {
		top := from.parts[len(from.parts)-1]
		if err := copyDirectory(h.stack.roots[top], p, h.to.fd()); err != nil {
			return fmt.Errorf("inherit directory %q: %w", p, err)
		}
	}
	for i := range d.children {
		if err := h.child(p, &d.children[i], from); err != nil {
			return err
		}
	}
	return nil
}

// child does the same for a directory in the directory p, if the stack shows it.
func (h *heir) child(p string, d *impliedDir, above *stackDir) error {
	p = join(p, d.base)
	from, err := h.stack.child(above, d.base, p)
	if err != nil {
		return fmt.Errorf("inherit directory %q: %w", p, err)
	}
	if len(from.parts) == 0 {
		return nil // so nothing below it exists there either
	}
	if err := h.to.down(d.base); err != nil {
		return fmt.Errorf("open directory %q: %w", p, err)
	}
	if err := h.directory(p, d, from); err != nil {
		return err
	}
	if err := h.to.up(); err != nil {
		return fmt.Errorf("leave directory %q: %w", p, err)
	}
	return nil
}

// copyDirectory copies the metadata of the directory p below root to an open directory.
func copyDirectory(root int, p string, to int) error {
	from, err := openBeneath(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	return futimens(to, st.Atim, st.Mtim)
}

func copyAttributes(from, to int) error {
	return eachAttribute(from, func(name string, value []byte) error {
		if err := unix.Fsetxattr(to, name, value, 0); err != nil && !attributeRefused(err) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
		return nil
	})
}
