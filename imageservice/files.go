package imageservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/micarun/mica/internal/jsonfile"
)

// writeFile makes the file at path, and the directories above it, appear with the given bytes at once. It returns when both the
// file and its directory entry are on stable storage.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return jsonfile.SyncDir(dir)
}

// removeFiles removes files and directory trees; what is not there is no error.
func removeFiles(paths ...string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, os.RemoveAll(p))
	}
	return errors.Join(errs...)
}
