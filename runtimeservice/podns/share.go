package podns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
)

// Share makes root, the parent of the pod directories, a mount point with shared propagation.
// Adding or removing a pin below root then takes effect in every mount namespace cloned from this
// one. Share makes the directory if it does not exist. It is idempotent, also after a restart: a
// root that is already a shared mount stays as it is. [Unshare] undoes it.
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
		_ = mounts.Detach(root)
		return fmt.Errorf("share mounts of %s: %w", root, err)
	}
	return nil
}

// Unshare removes the mount made by [Share] together with all mounts below it. It is idempotent.
func Unshare(root string) error { return mounts.Detach(root) }
