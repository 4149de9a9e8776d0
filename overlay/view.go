package overlay

import (
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

// maxResolveSteps limits the components of a path and of the links in it. Each of them is looked up
// in all layers.
const maxResolveSteps = 1024

// view looks up paths in a stack of layers without mounting it. Only resolveDir follows symbolic
// links. One goroutine may use it at a time.
type view struct {
	roots []int            // open diff directories, top first
	dirs  map[string][]int // path of a merged directory → indexes of the roots that make it up
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

// found is the topmost file at a path.
type found struct {
	root int // open diff directory that holds it
	stat unix.Stat_t
}

func (f *found) isDir() bool { return f.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// lookup returns nil if the stack shows no file at p. p is relative and clean.
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
	return v.find(p, parents)
}

// find looks for a path in the roots that make up the directory above it.
func (v *view) find(p string, parents []int) (top *found, parts []int, err error) {
	for _, i := range parents {
		here := found{root: v.roots[i]}
		err := fstatBeneath(v.roots[i], p, &here.stat)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if !here.isDir() { // it hides the roots below
			if top == nil && !isWhiteout(&here.stat) {
				top = &here
			}
			break
		}
		if top == nil {
			top = &here
		}
		parts = append(parts, i)
		if isOpaque(v.roots[i], p) {
			break
		}
	}
	return top, parts, nil
}

// dir returns the indexes of the roots that make up the directory p; none if p is not a directory.
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

// resolveDir resolves p as if the view were the root directory. It returns "" if p is not a
// directory, or takes too many steps to resolve.
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

// fdPath returns a path below an open directory, for system calls without an *at form.
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

// eachAttribute calls do for every extended attribute of a file except those of overlayfs.
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
