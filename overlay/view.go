package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes that overlayfs keeps in the layers themselves.
const (
	opaqueAttr        = "trusted.overlay.opaque"
	overlayAttrPrefix = "trusted.overlay."
)

// maxResolveSteps bounds the components of a path and of the links on its way,
// each of which is looked up in all layers.
const maxResolveSteps = 1024

// view answers what a stack of layers shows at a path, without mounting it. It
// follows no symbolic links but in resolveDir. It is for one goroutine.
type view struct {
	roots []int            // open diff directories, top first
	dirs  map[string][]int // path of a merged directory → indexes of the roots that make it up
	count *lookups         // nil: not counted
}

// newView opens the diff directories of a stack, top first. The caller closes it.
func (s *Store) newView(cacheIDs []string) (*view, error) {
	v := &view{dirs: map[string][]int{}}
	all := []int{}
	for i, id := range cacheIDs {
		fd, err := unix.Open(s.paths.diff(id), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			v.close()
			return nil, &os.PathError{Op: "open", Path: s.paths.diff(id), Err: err}
		}
		v.roots, all = append(v.roots, fd), append(all, i)
	}
	v.dirs["."] = all
	return v, nil
}

func (v *view) close() {
	for _, fd := range v.roots {
		_ = unix.Close(fd)
	}
}

// found is the topmost thing at a path.
type found struct {
	root int // open diff directory that holds it
	stat unix.Stat_t
}

func (f *found) isDir() bool { return f.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// lookup returns nil for what the stack does not show. p is relative and clean.
func (v *view) lookup(p string) (*found, error) {
	f, _, err := v.walk(p)
	return f, err
}

// walk also returns the indexes of the roots that make up a directory.
func (v *view) walk(p string) (*found, []int, error) {
	if p == "." {
		if len(v.roots) == 0 {
			return nil, nil, nil
		}
		f := &found{root: v.roots[0]}
		return f, v.dirs["."], fstatBeneath(v.roots[0], ".", &f.stat)
	}
	parents, err := v.dir(path.Dir(p))
	if err != nil {
		return nil, nil, err
	}
	return v.find(p, parents, false)
}

// find looks for a path in the roots that make up the directory above it. With
// topmost it ends at the first and returns no indexes.
func (v *view) find(p string, parents []int, topmost bool) (top *found, parts []int, err error) {
	depth := strings.Count(p, "/")
	for _, i := range parents {
		if err := v.count.take(depth); err != nil {
			return nil, nil, err
		}
		here := found{root: v.roots[i]}
		err := fstatBeneath(v.roots[i], p, &here.stat)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if !here.isDir() { // it ends the stack: below it nothing shows
			if top == nil && !isWhiteout(&here.stat) {
				top = &here
			}
			break
		}
		if top == nil {
			top = &here
		}
		if topmost {
			break
		}
		parts = append(parts, i)
		if isOpaque(v.roots[i], p) {
			break
		}
	}
	return top, parts, nil
}

// dir returns the indexes of the roots that make up the directory p; none if
// p is not a directory.
func (v *view) dir(p string) ([]int, error) {
	if parts, ok := v.dirs[p]; ok {
		return parts, nil
	}
	_, parts, err := v.walk(p)
	if err == nil {
		v.dirs[p] = parts
	}
	return parts, err
}

// resolveDir returns the directory that p leads to for a process that has the
// view as its root, "" if that is none, or is too far to seek.
func (v *view) resolveDir(p string) (string, error) {
	at, rest, links := ".", p, 0
	for step := 0; rest != ""; step++ {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := path.Join(at, name)
		if step == maxResolveSteps || len(name) > maxName || len(next) >= unix.PathMax {
			return "", nil
		}
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = path.Dir(at)
			continue
		}
		f, err := v.lookup(next)
		if err != nil || f == nil {
			return "", err
		}
		if f.isDir() {
			at = next
			continue
		}
		if links++; links > maxLinks || f.stat.Mode&unix.S_IFMT != unix.S_IFLNK {
			return "", nil
		}
		target, err := readLink(f.root, next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = target + "/" + rest
	}
	return at, nil
}

// readLink reads the target of a symbolic link below root.
func readLink(root int, p string) (string, error) {
	parent, err := openBeneath(root, path.Dir(p), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(parent) }()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, path.Base(p), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(root int, p string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(fdPath(root, p), opaqueAttr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// fdPath names a path relative to an open directory for calls without an *at form.
func fdPath(dirfd int, p string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, p) }

// openBeneath opens a path below root without following any symbolic link.
func openBeneath(root int, p string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(root, p, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func fstatBeneath(root int, p string, st *unix.Stat_t) error {
	parent, err := openBeneath(root, path.Dir(p), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(parent) }()
	return unix.Fstatat(parent, path.Base(p), st, unix.AT_SYMLINK_NOFOLLOW)
}

// inheritArgs say what a layer takes over from those below.
type inheritArgs struct {
	id    string     // of the layer's directory
	dirs  impliedDir // its root
	below []string   // directories of the layers below, top first
	count *lookups   // nil: not counted
}

// inherit gives implied directories of a layer the owner, mode, attributes and
// times that they have in the layers below, where they are there.
func (s *Store) inherit(ctx context.Context, a inheritArgs) error {
	if len(a.below) == 0 || !a.dirs.implied && len(a.dirs.children) == 0 {
		return nil
	}
	v, err := s.newView(a.below)
	if err != nil {
		return err
	}
	defer v.close()
	v.count = a.count
	target, err := unix.Open(s.paths.diff(a.id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: s.paths.diff(a.id), Err: err}
	}
	defer func() { _ = unix.Close(target) }()
	to, err := newLadder(target)
	if err != nil {
		return err
	}
	defer to.close()
	h := heir{ctx: ctx, view: v, to: to}
	return h.directory(".", &a.dirs, v.dirs["."])
}

// heir describes implied directories from the layers below.
type heir struct {
	ctx  context.Context // of one call, which this value does not outlive
	view *view
	to   *ladder // stands in the directory that is described
}

// directory describes the directory p and those below it. parents are the roots
// of the view that make up the directory above.
func (h *heir) directory(p string, d *impliedDir, parents []int) error {
	if err := h.ctx.Err(); err != nil {
		return err
	}
	top, parts, err := h.find(p, d, parents)
	if err != nil {
		return fmt.Errorf("inherit directory %q: %w", p, err)
	}
	if top == nil || !top.isDir() {
		return nil // nor is anything below it there
	}
	if d.implied {
		if err := copyDirectory(top, p, h.to.fd()); err != nil {
			return fmt.Errorf("inherit directory %q: %w", p, err)
		}
	}
	for i := range d.children {
		c := &d.children[i]
		if err := h.to.down(c.base); err != nil {
			return fmt.Errorf("open directory %q: %w", join(p, c.base), err)
		}
		if err := h.directory(join(p, c.base), c, parts); err != nil {
			return err
		}
		if err := h.to.up(); err != nil {
			return fmt.Errorf("leave directory %q: %w", join(p, c.base), err)
		}
	}
	return nil
}

// find returns the topmost directory, and all that make it up if there is something below it to describe.
func (h *heir) find(p string, d *impliedDir, parents []int) (*found, []int, error) {
	if p == "." {
		return h.view.walk(p)
	}
	return h.view.find(p, parents, len(d.children) == 0)
}

// copyDirectory copies what describes the directory p of a view to an open directory.
func copyDirectory(f *found, p string, to int) error {
	from, err := openBeneath(f.root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	if err := unix.Fchown(to, int(f.stat.Uid), int(f.stat.Gid)); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if err := unix.Fchmod(to, f.stat.Mode&0o7777); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	return futimens(to, f.stat.Atim, f.stat.Mtim)
}

func copyAttributes(from, to int) error {
	return eachAttribute(from, func(name string, value []byte) error {
		if err := unix.Fsetxattr(to, name, value, 0); err != nil && !attributeRefused(err) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
		return nil
	})
}

// eachAttribute calls do with every extended attribute of a file but overlayfs's own.
func eachAttribute(fd int, do func(name string, value []byte) error) error {
	names, err := listAttributes(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, overlayAttrPrefix) {
			continue
		}
		value := make([]byte, maxAttribute)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s: %w", name, err)
		}
		if err := do(name, value[:n]); err != nil {
			return err
		}
	}
	return nil
}

func listAttributes(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	buf := make([]byte, n)
	if n, err = unix.Flistxattr(fd, buf); err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}
