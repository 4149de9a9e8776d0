package podns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
)

// nsfsMagic is the file system type of namespace files (linux/magic.h).
const nsfsMagic = 0x6e736673

// Unpin removes every pin in dir, also half-made ones. It leaves the directory itself and
// everything else in it. A namespace ends with its last process. Unpin is idempotent: missing pins,
// files or directories are no error. It does not wait for the kernel to destroy the namespaces.
func Unpin(dir string) error {
	return unpin(dir, []string{Net, IPC, UTS, PID, User})
}

func unpin(dir string, names []string) error {
	var errs []error
	for _, name := range names {
		if err := unpinFile(filepath.Join(dir, name)); err != nil {
			errs = append(errs, fmt.Errorf("unpin %s namespace: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// unpinFile removes all mounts from path, and then the file.
func unpinFile(path string) error {
	if err := mounts.Detach(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return nil
}

// Pinned reports whether path is a pin: a mounted namespace file, and not the plain file that a
// crash or a reboot leaves behind.
func Pinned(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, fs.ErrNotExist) || err == unix.ENOTDIR {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Type == nsfsMagic, nil
}

// touch makes the empty file on which a pin is mounted. It returns ErrAlreadyExists if path is a
// pin.
func touch(path string) error {
	pinned, err := Pinned(path)
	if err != nil {
		return err
	}
	if pinned {
		return fmt.Errorf("%s: %w", path, errdefs.ErrAlreadyExists)
	}
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return unix.Close(fd)
}
