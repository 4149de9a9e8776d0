package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Detach removes every mount from path. There can be several mounts on one path if a crash occurred
// between two attempts. A mount that is still in use disappears from the tree at once, with the
// mounts below it; the kernel releases it after its last use.
func Detach(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT, unix.ENOTDIR: // EINVAL: not a mount point
			return nil
		default:
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

// DetachBelow is Detach for dir and every mount point below it, deepest first. dir is an absolute
// path without symbolic links.
func DetachBelow(dir string) error {
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	slices.SortFunc(found, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	for _, m := range found {
		if err := Detach(m.Mountpoint); err != nil {
			return err
		}
	}
	return nil
}

// Unmount removes every mount from path and waits for the file systems to be released, which writes
// their data. Only a mount that is in use is detached instead.
func Unmount(path string) error {
	for {
		mounted, err := IsMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: unmounted meanwhile
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}
