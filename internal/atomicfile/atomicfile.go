// Package atomicfile replaces files by renaming a temporary file over them, so that a reader gets
// either the old or the new content, never a part of it.
//
// The temporary file is in the same directory and is called .<name>.<random>. A crash can leave it
// there; the owner of the directory removes it. There is no locking: the caller orders writers of
// the same path. Functions may be called concurrently for different paths.
//
// The keeper uses this package, so it imports only the standard library and x/sys.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Options select how a file is written. Its zero value is the default.
type Options struct {
	// Mode is the mode of the new file, regardless of the umask; 0600 by default.
	Mode fs.FileMode
	// Sync makes Write return only when the content and the directory entry are on stable storage.
	// Without it the file survives a crash of the process, but not a power failure.
	Sync bool
}

// Write replaces the file at path, or makes it. After an error the old file is unchanged, unless
// only the sync of the directory failed. The error wraps the kernel's.
func Write(path string, data []byte, o Options) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = fill(f, data, o)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil || !o.Sync {
		return err
	}
	return SyncDir(dir)
}

func fill(f *os.File, data []byte, o Options) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	if o.Mode != 0 {
		if err := f.Chmod(o.Mode); err != nil {
			return err
		}
	}
	if !o.Sync {
		return nil
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// SyncDir writes the directory entries of dir to stable storage.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
