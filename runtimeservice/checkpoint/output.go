package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// RefuseOptions returns ErrInvalidArgument for any option of CheckpointPod or RestorePod. None is
// defined, and an unknown one must not be ignored.
func RefuseOptions(options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		return fmt.Errorf("option %q is not known: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ClaimOutput locks the empty directory path against other checkpoints until the returned file is
// closed. Otherwise the clean-up after a failed checkpoint could remove another one's files.
// Errors: ErrInvalidArgument for anything but an empty directory, ErrUnavailable for a locked one.
func ClaimOutput(path string) (_ *os.File, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("output path %q is not absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("output path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer func() {
		if err != nil {
			_ = dir.Close()
		}
	}()
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another checkpoint is being written: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("output path %q: %w", path, err)
	}
	names, err := dir.Readdirnames(1)
	if err == nil {
		err = fmt.Errorf("it is not empty, it has %q: %w", names[0], errdefs.ErrInvalidArgument)
	}
	if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("output path %q: %w", path, err)
	}
	return dir, nil
}

// Room returns how many bytes a checkpoint may use in the file system of dir: the free space,
// except for a twentieth of the whole file system, which is kept for others.
func Room(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure free space of %s: %w", dir, err)
	}
	return max(int64(st.Bavail)-int64(st.Blocks/20), 0) * st.Bsize, nil
}

// SaveFile makes the file path, which must not exist, and lets write fill it. Writing more than
// limit bytes fails with ErrResourceExhausted. After an error a part of the file may exist.
func SaveFile(path string, limit int64, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(&bounded{to: f, left: limit}), f.Close())
}

// bounded fails when more than left bytes are written.
type bounded struct {
	to   io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fmt.Errorf("it needs more room than the data root has: %w", errdefs.ErrResourceExhausted)
	}
	return b.to.Write(p)
}
