package podns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Share makes root, the parent of the pod directories, a mount point with
// shared propagation, so that pins made and taken away below it reach every
// mount namespace that was cloned from this one. It makes the directory if it
// is not there and is idempotent over restarts: a root that already is a shared
// mount stays as it is. [Unshare] is its reverse.
func Share(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	// Changing the propagation succeeds only on a mount point.
	err := unix.Mount("", root, "", unix.MS_SHARED, "")
	if err == nil {
		return nil
	}
	if err != unix.EINVAL {
		return fmt.Errorf("share mounts of %s: %w", root, err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on itself: %w", root, err)
	}
	if err := unix.Mount("", root, "", unix.MS_SHARED, ""); err != nil {
		_ = unix.Unmount(root, unix.MNT_DETACH)
		return fmt.Errorf("share mounts of %s: %w", root, err)
	}
	return nil
}

// Unshare takes the mount of [Share] away, with whatever is still mounted below
// it. It is idempotent.
func Unshare(root string) error { return detach(root) }
