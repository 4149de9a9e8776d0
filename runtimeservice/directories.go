package runtimeservice

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// privateMode is the mode of directories that root alone enters.
	privateMode = 0o700
	// searchMode lets everybody through and nobody list. Root in a user namespace
	// is an unprivileged UID on the host, and the OCI runtime looks up the path of
	// the root filesystem as that UID. Many pods with different groups go this
	// way, so the mode cannot name one.
	searchMode = 0o711
	// mappedMode lets in root and the group that is 0 in the pod's user namespace.
	mappedMode = 0o710
)

// prepareDirectories makes the directories of the service, and takes from those
// that are there what an older build or a umask let other users do.
func (s *Service) prepareDirectories() error {
	private := []string{s.paths.Records(), s.paths.PodRecords(), s.paths.ContainerRecords(), s.paths.Checkpoints(), s.paths.PodStates()}
	for dir, mode := range map[string]fs.FileMode{s.paths.StateDir: searchMode, s.paths.Bundles(): searchMode} {
		if err := makeDir(dir, mode); err != nil {
			return err
		}
	}
	for _, dir := range private {
		if err := makeDir(dir, privateMode); err != nil {
			return err
		}
	}
	if err := tightenBelow(s.paths.PodStates(), 0o077); err != nil {
		return err
	}
	// A bundle's group is root, or the one that is 0 in its pod and needs search permission.
	return tightenBelow(s.paths.Bundles(), 0o067)
}

// makeDir makes the directory with this mode, whatever the umask, or gives it to
// the one that is there.
func makeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// tightenBelow takes the permissions in the mask from the directories in dir.
func tightenBelow(dir string, mask fs.FileMode) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.IsDir() || info.Mode().Perm()&mask == 0 {
			continue // a directory that has gone since needs nothing
		}
		if err := os.Chmod(filepath.Join(dir, e.Name()), info.Mode().Perm()&^mask); err != nil {
			return fmt.Errorf("restrict directory of an older build: %w", err)
		}
	}
	return nil
}
