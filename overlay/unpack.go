package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
)

// UnpackArgs are a tar of changes and how to apply it.
type UnpackArgs struct {
	// Tar is uncompressed. A whiteout deletes a file, as in a layer.
	Tar io.Reader
	// Deleted are more paths to delete, relative to the root.
	Deleted []string
	// Limit is the maximum size of all files together, in bytes.
	Limit int64
	// Keep adds only files that do not exist, and leaves existing files as they are.
	Keep bool
}

// ApplyChanges applies changes that [Store.Changes] wrote to a mounted writable layer. It follows
// no symbolic link, so no tar can touch anything outside the layer. It returns
// errdefs.ErrInvalidArgument if the tar is malformed, leaves the root or exceeds a limit. It
// returns errdefs.ErrNotFound if the layer does not exist, and errdefs.ErrFailedPrecondition if it
// is not mounted. After an error the layer holds a part of the changes.
func (s *Store) ApplyChanges(ctx context.Context, id string, a UnpackArgs) error {
	w, err := s.writable(id)
	if err != nil {
		return fmt.Errorf("apply changes: %w", err)
	}
	defer w.mu.Unlock()
	merged := filepath.Join(s.paths.dir(w.MountID), mergedName)
	mounted, err := mounts.IsMountPoint(merged)
	if err == nil && !mounted {
		err = fmt.Errorf("not mounted: %w", errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = unpack(ctx, merged, a)
	}
	if err != nil {
		return fmt.Errorf("apply changes to writable layer %s: %w", id, err)
	}
	return nil
}

// UnpackTree unpacks a tar into a directory. It follows no symbolic link, and returns
// errdefs.ErrInvalidArgument for the same tars as [Store.ApplyChanges]. Nothing else may write to
// the directory meanwhile.
func UnpackTree(ctx context.Context, dir string, a UnpackArgs) error {
	if err := unpack(ctx, dir, a); err != nil {
		return fmt.Errorf("unpack into %s: %w", dir, err)
	}
	return nil
}

// unpacker writes the entries of one tar to a tree that may have files already.
type unpacker struct {
	root    int // open directory
	left    int64
	keep    bool
	made    map[string]bool // paths created so far
	dirs    []dirTimes      // set at the end, because files created in a directory change its times
	entries int
	names   int // bytes of names and link targets
	devices int
}

type dirTimes struct {
	path  string
	times times
}

func unpack(ctx context.Context, dir string, a UnpackArgs) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(root) }()
	u := &unpacker{root: root, left: a.Limit, keep: a.Keep, made: map[string]bool{}}
	if err := u.run(ctx, tar.NewReader(&readerUntil{ctx: ctx, from: a.Tar})); err != nil {
		return err
	}
	for _, p := range a.Deleted {
		if err := u.delete(ctx, p); err != nil {
			return fmt.Errorf("delete %q: %w", p, err)
		}
	}
	// Innermost first: setting the times of a directory does not change those above.
	slices.Reverse(u.dirs)
	for _, d := range u.dirs {
		if err := u.setTimes(d); err != nil {
			return fmt.Errorf("entry %q: %w", d.path, err)
		}
	}
	return nil
}

func (u *unpacker) run(ctx context.Context, in *tar.Reader) error {
	last := ""
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			last = h.Name
			err = u.entry(ctx, h, in)
		}
		if cause := ctx.Err(); cause != nil {
			return cause
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", last, tarError(err))
		}
	}
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, in io.Reader) error {
	if u.entries++; u.entries > maxEntries {
		return invalid("more than %d entries", maxEntries)
	}
	if u.names += len(h.Name) + len(h.Linkname); u.names > maxNames {
		return invalid("more than %d bytes of names", maxNames)
	}
	name, err := cleanName(h.Name)
	if err != nil || h.Typeflag == tar.TypeXGlobalHeader {
		return err
	}
	if h.Size < 0 || h.Size > u.left {
		return invalid("content exceeds the limit")
	}
	u.left -= h.Size
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName {
			return invalid("a component of the name has %d bytes, the limit is %d", len(part), maxName)
		}
	}
	if name == "." {
		return u.rootEntry(h)
	}
	if u.keep && !u.made[name] {
		var st unix.Stat_t
		if err := fstatBeneath(u.root, name, &st); err == nil {
			return nil
		}
	}
	parent, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(parent) }()
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(ctx, parent, name)
	}
	u.made[name] = true
	m, err := newMeta(h)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.directory(parent, name, m)
	}
	if err := removeTree(ctx, parent, base); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return u.regular(parent, base, m, io.LimitReader(in, h.Size))
	}
	return u.other(parent, base, m, h)
}

func (u *unpacker) rootEntry(h *tar.Header) error {
	if u.keep {
		return nil
	}
	if h.Typeflag != tar.TypeDir {
		return invalid("the root can only be a directory")
	}
	m, err := newMeta(h)
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, dirTimes{".", m.times})
	return m.applyFd(u.root)
}

// parent opens the directory p and creates its missing components.
func (u *unpacker) parent(p string) (int, error) {
	fd, err := openBeneath(u.root, p, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, u.refused(err)
	}
	above, err := u.parent(path.Dir(p))
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(above) }()
	if err := unix.Mkdirat(above, path.Base(p), 0o755); err != nil {
		return -1, fmt.Errorf("make parent directory: %w", err)
	}
	fd, err = openBeneath(u.root, p, unix.O_PATH|unix.O_DIRECTORY)
	return fd, u.refused(err)
}

// refused explains why a path cannot be walked.
func (u *unpacker) refused(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENAMETOOLONG):
		return invalid("its parent is not a directory of the tree: %v", err)
	}
	return fmt.Errorf("open parent directory: %w", err)
}

func (u *unpacker) directory(parent int, name string, m meta) error {
	base := path.Base(name)
	err := unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = unix.Unlinkat(parent, base, 0); err == nil {
				err = unix.Mkdirat(parent, base, 0o700)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := openBeneath(parent, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	u.dirs = append(u.dirs, dirTimes{name, m.times})
	return m.applyFd(fd)
}

func (u *unpacker) setTimes(d dirTimes) error {
	fd, err := openBeneath(u.root, d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // deleted or replaced by a later entry
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return futimens(fd, d.times.access, d.times.modify)
}

func (u *unpacker) regular(parent int, base string, m meta, content io.Reader) (err error) {
	fd, err := createFile(parent, base, 0o600)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer func() {
		if cerr := unix.Close(fd); err == nil && cerr != nil {
			err = fmt.Errorf("close file: %w", cerr)
		}
	}()
	out := fileWriter{fd: fd, run: plainRun}
	buf := make([]byte, plainRun)
	for {
		n, rerr := io.ReadFull(content, buf)
		if err := out.write(buf[:n]); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if out.end < out.pos {
		if err := unix.Ftruncate(fd, out.pos); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
	}
	if err := m.applyFd(fd); err != nil {
		return err
	}
	return futimens(fd, m.times.access, m.times.modify)
}

// other creates a file without content under a free name.
func (u *unpacker) other(parent int, base string, m meta, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeLink:
		return u.hardLink(parent, base, h.Linkname)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return invalid("bad target of a symbolic link")
		}
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
		return m.applyAt(parent, base, true)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := u.device(parent, base, h); err != nil {
			return err
		}
		return m.applyAt(parent, base, false)
	}
	return invalid("unknown type %q", h.Typeflag)
}

// hardLink links to an earlier entry and keeps that entry's owner, mode and times.
func (u *unpacker) hardLink(parent int, base, target string) error {
	name, err := cleanName(target)
	if err != nil {
		return err
	}
	if !u.made[name] {
		return invalid("a hard link to %q, which is no earlier entry of the tar", target)
	}
	dir, err := openBeneath(u.root, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return u.refused(err)
	}
	defer func() { _ = unix.Close(dir) }()
	if err := unix.Linkat(dir, path.Base(name), parent, base, 0); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) { // a directory, or the link itself
			return invalid("a hard link to %q: %v", target, err)
		}
		return linkError(target, err)
	}
	return nil
}

func (u *unpacker) device(parent int, base string, h *tar.Header) error {
	kinds := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return invalid("device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	if u.devices++; u.devices > maxDevices {
		return invalid("more than %d device nodes", maxDevices)
	}
	number := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if h.Typeflag == tar.TypeChar && number == 0 {
		return invalid("a whiteout of overlayfs")
	}
	if err := unix.Mknodat(parent, base, kinds[h.Typeflag]|0o600, int(number)); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	return nil
}

// whiteout deletes what it would hide in a layer: one name, or the content of an opaque directory.
// Files that come from the tar stay.
func (u *unpacker) whiteout(ctx context.Context, parent int, name string) error {
	base := path.Base(name)
	if strings.HasPrefix(base, aufsPrefix) && base != opaqueName {
		return nil // AUFS's own bookkeeping
	}
	if base != opaqueName {
		hidden := strings.TrimPrefix(base, whiteoutPrefix)
		if hidden == "" || hidden == "." || hidden == ".." {
			return invalid("a whiteout of %q", hidden)
		}
		if u.made[path.Join(path.Dir(name), hidden)] {
			return nil
		}
		return removeTree(ctx, parent, hidden)
	}
	fd, err := openBeneath(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, child := range names {
		if u.made[path.Join(path.Dir(name), child)] {
			continue
		}
		if err := removeTree(ctx, parent, child); err != nil {
			return err
		}
	}
	return nil
}

// delete removes one path. It is no error if the path does not exist.
func (u *unpacker) delete(ctx context.Context, p string) error {
	name, err := cleanName(p)
	if err != nil {
		return err
	}
	if name == "." {
		return invalid("the root cannot be deleted")
	}
	parent, err := openBeneath(u.root, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return u.refused(err)
	}
	defer func() { _ = unix.Close(parent) }()
	return removeTree(ctx, parent, path.Base(name))
}
