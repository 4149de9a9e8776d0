package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/internal/osthread"
)

// # Mounts for user namespaces
//
// An overlay mount itself cannot be mapped, but its layers can (Linux 5.19): each is bound, with
// the mapping of the user namespace, over itself, in a mount namespace that only the mounting
// thread is in; overlayfs keeps what it finds there. The upper directory is mapped too, so that a
// writable layer has the same owners on disk whatever namespace its container ran in.
//
// What overlayfs makes in the upper directory on its own account (its work directory, whiteouts)
// belongs to whoever mounts, who must therefore be somebody with an ID in the namespace: its root,
// with all capabilities kept.

// errNoMapping says that the file system of a layer, or overlayfs, cannot map.
var errNoMapping = fmt.Errorf("mapped layers are not supported by the kernel for this file system: %w", errdefs.ErrNotImplemented)

// ProbeMapped returns nil if layers can be mounted for the user namespace of the file userNS by a
// mapping, and errdefs.ErrNotImplemented if they cannot: then Mount makes copies from now on,
// without trying, and MountMappedView fails.
func (s *Store) ProbeMapped(userNS string) error {
	dir := s.paths.writeSet(newID())
	lower, upper := filepath.Join(dir, "lower"), filepath.Join(dir, "upper")
	m := overlayMount{
		lowers: []string{lower}, upper: filepath.Join(upper, diffName), work: filepath.Join(upper, workName),
		target: filepath.Join(upper, mergedName),
	}
	err := os.Mkdir(dir, 0o700)
	for _, d := range []string{lower, upper, m.upper, m.work, m.target} {
		err = errors.Join(err, os.Mkdir(d, 0o700))
	}
	if err == nil {
		err = s.mountMapped(m, userNS)
	}
	s.noMapping.Store(errors.Is(err, errNoMapping))
	if err = errors.Join(err, mounts.Unmount(m.target), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("mount for a user namespace: %w", err)
	}
	return nil
}

// mountOwned mounts m for a user namespace, by mapped layers or, where there are none, by a copy.
func (s *Store) mountOwned(ctx context.Context, m overlayMount, o *Owners) error {
	if err := o.check(); err != nil {
		return err
	}
	err := s.mountMapped(m, o.UserNS)
	if errors.Is(err, errNoMapping) && m.upper != "" {
		return s.rechown(ctx, m, o)
	}
	return err
}

// mountMapped mounts m with the owners of all files as the user namespace of the file userNS maps
// them.
func (s *Store) mountMapped(m overlayMount, userNS string) error {
	if s.noMapping.Load() {
		return errNoMapping
	}
	ns, err := os.Open(userNS)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	m.here = true
	tree := -1
	err = osthread.Run(func() error {
		if err := enterPrivate(s.paths.overlay()); err != nil {
			return err
		}
		for _, dir := range m.layerDirs() {
			if err := bindMapped(mappedBind{from: dir, to: dir, ns: ns}); err != nil {
				return fmt.Errorf("map layer %s: %w", dir, err)
			}
		}
		if err := m.becomeRoot(); err != nil {
			return err
		}
		if err := s.mountOverlay(m); errors.Is(err, unix.EINVAL) { // before Linux 5.19
			return fmt.Errorf("%w: %w", errNoMapping, err)
		} else if err != nil {
			return err
		}
		tree, err = unix.OpenTree(unix.AT_FDCWD, m.target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("take overlay out of its mount namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	if err := m.checkWritable(tree); err != nil {
		return err
	}
	return mounts.Attach(tree, m.absolute(s.paths.overlay()).target)
}

// enterPrivate takes the calling thread into a mount namespace of its own, from which nothing gets
// out, and into the directory dir.
func enterPrivate(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("confine mounts: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	return nil
}

// layerDirs are the directories that hold the layers of m, upper last. Upper and work directory
// must be of one mount, so their parent stands for both.
func (m overlayMount) layerDirs() []string {
	dirs := m.lowers
	if m.upper != "" {
		dirs = append(dirs[:len(dirs):len(dirs)], filepath.Dir(m.upper))
	}
	return dirs
}

// becomeRoot makes the calling thread work on files as the mapped root, whom the mapped parent of
// the upper directory belongs to, without losing a right.
func (m overlayMount) becomeRoot() error {
	if m.upper == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(m.upper), &st); err != nil {
		return &os.PathError{Op: "stat", Path: filepath.Dir(m.upper), Err: err}
	}
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP of linux/securebits.h
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if _, err := unix.SetfsgidRetGid(int(st.Gid)); err != nil {
		return fmt.Errorf("become mapped group %d: %w", st.Gid, err)
	}
	if _, err := unix.SetfsuidRetUid(int(st.Uid)); err != nil {
		return fmt.Errorf("become mapped root %d: %w", st.Uid, err)
	}
	return nil
}

// checkWritable refuses a mount that overlayfs made read-only because it could not use the work
// directory, which it says in the kernel's log only.
func (m overlayMount) checkWritable(tree int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(tree, &st); err != nil {
		return fmt.Errorf("look at overlay: %w", err)
	}
	if m.upper != "" && st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("mount overlay: the kernel cannot write to the mapped upper directory: %w", errNoMapping)
	}
	return nil
}

// mappedBind is a bind mount that shows the owners of files as the user namespace ns maps them.
// Symbolic links are followed at both ends.
type mappedBind struct {
	from, to string
	ns       *os.File
	readOnly bool
}

func bindMapped(b mappedBind) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, b.from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(b.ns.Fd())}
	if b.readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: %w", errNoMapping, err)
	}
	if err != nil {
		return fmt.Errorf("map mount: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.to, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("attach mount: %w", err)
	}
	return nil
}
