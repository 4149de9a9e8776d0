package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// BindTree binds source, with all mounts below it, to the new path target, with the attributes
// attr. attr must set the propagation: unmounting a bind below a shared mount would unmount the
// original too. It returns ErrFailedPrecondition if attr has ID mappings that a file system does
// not support.
func BindTree(source, target string, attr *unix.MountAttr) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone mount %s: %w", source, err)
	}
	defer func() { _ = unix.Close(tree) }()
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("a file system at %s does not support id-mapped mounts: %w: %w", source, err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("set attributes of mount %s: %w", source, err)
	}
	return attachNew(tree, target)
}

// BindBelow binds the mount at path below source to the new path target, without the mounts below
// it. propagation is MS_PRIVATE or MS_SLAVE. A process that can write to source may have replaced
// directories with symbolic links; BindBelow does not follow them. [IsHidden] recognizes the errors
// that follow from this.
func BindBelow(source, path, target string, propagation uint64) error {
	root, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	at, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	tree, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: propagation}); err != nil {
		return fmt.Errorf("set propagation of mount: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	return attachNew(tree, target)
}

// IsHidden reports whether BindBelow failed because the mount cannot be reached: it was removed, or
// another mount or a symbolic link covers it.
func IsHidden(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// Attach attaches the detached mount fd to the existing path target. The last component of target
// is not followed.
func Attach(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount to %s: %w", target, err)
	}
	return nil
}

// attachNew makes target, a directory or file like the root of the mount tree, and attaches tree.
func attachNew(tree int, target string) error {
	var st unix.Stat_t
	err := unix.Fstat(tree, &st)
	switch {
	case err != nil:
		return fmt.Errorf("stat mount: %w", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = os.Mkdir(target, 0o700)
	default:
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	return Attach(tree, target)
}
