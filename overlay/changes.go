package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Changes writes the added and changed files of a writable layer as an uncompressed tar without
// whiteouts. It returns the deleted paths, relative to the root and sorted. The layer may be
// mounted, but nothing may write to it meanwhile. The tar has no sockets and no root directory.
// Changes returns errdefs.ErrNotFound if the layer does not exist, and
// errdefs.ErrFailedPrecondition if a path is longer than 4096 bytes.
func (s *Store) Changes(ctx context.Context, id string, to io.Writer) (deleted []string, err error) {
	s.mu.Lock()
	w := s.rws[id]
	s.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("changes of writable layer %s: %w", id, errdefs.ErrNotFound)
	}
	below, err := s.cacheIDs(w.Parent)
	if err != nil {
		return nil, fmt.Errorf("changes of writable layer %s: %w", id, err)
	}
	if w.InitID != "" {
		below = append([]string{w.InitID}, below...)
	}
	v, err := s.newView(below)
	if err != nil {
		return nil, fmt.Errorf("changes of writable layer %s: %w", id, err)
	}
	defer v.close()
	t := treeWriter{ctx: ctx, tar: tar.NewWriter(to), below: v, links: map[inode]string{}}
	if err := t.pack(s.paths.diff(w.MountID)); err != nil {
		return nil, fmt.Errorf("changes of writable layer %s: %w", id, err)
	}
	slices.Sort(t.deleted)
	return t.deleted, nil
}

// PackTree writes the files below a directory as an uncompressed tar, without sockets and without
// the directory itself. Nothing may write to the directory meanwhile. It returns
// errdefs.ErrFailedPrecondition if a path is longer than 4096 bytes.
func PackTree(ctx context.Context, dir string, to io.Writer) error {
	t := treeWriter{ctx: ctx, tar: tar.NewWriter(to), links: map[inode]string{}}
	if err := t.pack(dir); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	return nil
}

// inode identifies a file on the host.
type inode struct{ device, number uint64 }

// treeWriter packs one tree.
type treeWriter struct {
	ctx     context.Context // of one call, which this value does not outlive
	tar     *tar.Writer
	below   *view            // of the layers below an upper directory; nil for an ordinary tree
	links   map[inode]string // files with several names that were packed already
	deleted []string
	dirs    []packedDir // from the root to the current directory
}

// packedDir is a directory that is being packed. hidden is true if it or a directory above is
// opaque, so that it shows nothing of the layers below.
type packedDir struct {
	path   string
	hidden bool
}

func (t *treeWriter) pack(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	t.dirs = []packedDir{{path: "."}}
	if err := walkTree(t.ctx, fd, walk{all: true, names: t.names, enter: t.enter, leave: t.leave}); err != nil {
		return fmt.Errorf("in %q: %w", t.here().path, err)
	}
	return t.tar.Close()
}

func (t *treeWriter) here() *packedDir { return &t.dirs[len(t.dirs)-1] }

// names packs the files in a directory and returns its subdirectories.
func (t *treeWriter) names(fd int, names []string) (dirs []string, err error) {
	slices.Sort(names)
	here := t.here()
	if t.below != nil && (here.hidden || isOpaque(fd, ".")) {
		here.hidden = true
		if err := t.deleteHidden(here.path, names); err != nil {
			return nil, fmt.Errorf("read directory of the image: %w", err)
		}
	}
	for _, name := range names {
		if err := t.ctx.Err(); err != nil {
			return nil, err
		}
		isDir, err := t.entry(fd, name, join(here.path, name))
		if err != nil {
			return nil, err
		}
		if isDir {
			dirs = append(dirs, name)
		}
	}
	return dirs, nil
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// deleteHidden records as deleted what the layers below have in the opaque directory p, except the
// names in have.
func (t *treeWriter) deleteHidden(p string, have []string) error {
	names, err := t.below.names(p)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := slices.BinarySearch(have, name); !ok {
			t.deleted = append(t.deleted, join(p, name))
		}
	}
	return nil
}

func (t *treeWriter) entry(dirfd int, name, p string) (isDir bool, err error) {
	if len(p) > maxPath {
		return false, fmt.Errorf("a path of %d bytes, the limit is %d: %w", len(p), maxPath, errdefs.ErrFailedPrecondition)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("stat %q: %w", p, err)
	}
	if t.below != nil && isWhiteout(&st) {
		t.deleted = append(t.deleted, p)
		return false, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return false, nil
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFREG:
		err = t.regular(dirfd, name, p)
	default:
		err = t.special(dirfd, name, p, &st)
	}
	if err != nil {
		return false, fmt.Errorf("pack %q: %w", p, err)
	}
	return false, nil
}

// enter packs a directory itself.
func (t *treeWriter) enter(fd int, name string) error {
	p := join(t.here().path, name)
	t.dirs = append(t.dirs, packedDir{p, t.here().hidden})
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	h := headerOf(p+"/", tar.TypeDir, &st)
	if err := addAttributes(h, fd); err != nil {
		return err
	}
	return t.tar.WriteHeader(h)
}

func (t *treeWriter) leave(int, string) error {
	t.dirs = t.dirs[:len(t.dirs)-1]
	return nil
}

// openEntry opens a name in a directory and returns the stat of the open file.
func openEntry(dirfd int, name string, flags int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(dirfd, name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, errors.Join(err, f.Close())
	}
	return f, st, nil
}

func (t *treeWriter) regular(dirfd int, name, p string) error {
	f, st, err := openEntry(dirfd, name, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	h := headerOf(p, tar.TypeReg, &st)
	if first, ok := t.linked(h, &st); ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return t.tar.WriteHeader(h)
	}
	h.Size = st.Size
	if err := addAttributes(h, int(f.Fd())); err != nil {
		return err
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(t.tar, &readerUntil{ctx: t.ctx, from: io.LimitReader(f, st.Size)}); err != nil {
		return err
	}
	return t.tar.Flush() // returns an error if the file became shorter
}

// linked returns the name under which a file with several names was packed already.
func (t *treeWriter) linked(h *tar.Header, st *unix.Stat_t) (string, bool) {
	if st.Nlink < 2 {
		return "", false
	}
	id := inode{st.Dev, st.Ino}
	first, ok := t.links[id]
	if !ok {
		t.links[id] = h.Name
	}
	return first, ok
}

// special packs a file without content.
func (t *treeWriter) special(dirfd int, name, p string, st *unix.Stat_t) error {
	h := headerOf(p, tar.TypeFifo, st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(fdPath(dirfd, name))
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if first, ok := t.linked(h, st); ok {
		h = headerOf(p, tar.TypeLink, st)
		h.Linkname = first
	}
	return t.tar.WriteHeader(h)
}

func headerOf(p string, kind byte, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Typeflag: kind, Name: p, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func addAttributes(h *tar.Header, fd int) error {
	return eachAttribute(fd, func(name string, value []byte) error {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+name] = string(value)
		return nil
	})
}

// names lists the directory p of the stack in any order. It returns nothing if p is not a
// directory.
func (v *view) names(p string) ([]string, error) {
	parts, err := v.dir(p)
	if err != nil {
		return nil, err
	}
	shown, gone := map[string]bool{}, map[string]bool{}
	for _, i := range parts {
		if err := v.addNames(v.roots[i], p, shown, gone); err != nil {
			return nil, err
		}
	}
	return slices.Collect(maps.Keys(shown)), nil
}

// addNames adds the names of one root in a directory, except those that the roots above show or
// hide.
func (v *view) addNames(root int, p string, shown, gone map[string]bool) error {
	fd, err := openBeneath(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), p)
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch {
		case shown[name] || gone[name]:
		case isWhiteout(&st):
			gone[name] = true
		default:
			shown[name] = true
		}
	}
	return nil
}

// readerUntil is a reader that returns an error once its context has ended.
type readerUntil struct {
	ctx  context.Context // of one copy, which this value does not outlive
	from io.Reader
}

func (r *readerUntil) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.from.Read(p)
}
