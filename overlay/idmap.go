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
// An overlay mount itself cannot be ID-mapped, but its layers can (Linux 5.19). The mounting thread
// enters its own mount namespace and bind-mounts each layer over itself, with the user namespace's
// mapping. The overlay mount keeps a reference to these mounts. The upper directory is mapped too,
// so that a writable layer has the same owners on disk for every namespace.
//
// Overlayfs itself creates files in the upper directory: its work directory and whiteouts. Their
// owner is the mounting thread's file system UID, which must have an ID in the namespace. So the
// thread mounts as the namespace's root and keeps all capabilities.

// errNoMapping means that the file system of a layer, or overlayfs, does not support ID-mapped
// mounts.
var errNoMapping = fmt.Errorf("mapped layers are not supported by the kernel for this file system: %w", errdefs.ErrNotImplemented)

// ProbeMapped returns nil if layers can be ID-mapped for the user namespace of the file userNS, and
// errdefs.ErrNotImplemented if that is not supported. Then later calls of Mount copy the image
// without another attempt, and MountView returns an error.
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

// mountOwned mounts m for a user namespace, with mapped layers or, if these are not supported, with
// a copy.
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

// mountMapped mounts m with the owners of all files mapped by the user namespace of the file
// userNS.
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

// enterPrivate moves the calling thread to a new private mount namespace and changes its working
// directory to dir. No mount propagates out of the namespace.
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

// layerDirs returns the directories of the layers of m, upper last. The upper and the work
// directory must be on one mount, so their parent is returned for both.
func (m overlayMount) layerDirs() []string {
	dirs := m.lowers
	if m.upper != "" {
		dirs = append(dirs[:len(dirs):len(dirs)], filepath.Dir(m.upper))
	}
	return dirs
}

// becomeRoot sets the file system UID and GID of the calling thread to the mapped root, and keeps
// all capabilities. The mapped parent of the upper directory belongs to that root.
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

// checkWritable returns an error if overlayfs made the mount read-only because it could not use the
// work directory. Overlayfs reports this only in the kernel's log.
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

// mappedBind is a bind mount with owners mapped by the user namespace ns. Symbolic links are
// followed in both paths.
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
