package runtimeservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/state"
)

// nestDirectories makes n directories within each other below dir, which no path can name.
func nestDirectories(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for range n {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		below, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = below
	}
}

// allowFewDescriptors leaves the process room for some descriptors more than it has.
func allowFewDescriptors(t *testing.T) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)) + 64, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// TestNestedStateIsRemoved: directories of containers, pods and checkpoints go however deep what is
// in them is nested.
func TestNestedStateIsRemoved(t *testing.T) {
	s := &Service{inventory: newInventory(state.Paths{DataDir: t.TempDir()}, nil)}
	removals := map[string]func(dir string) error{
		"state directory without a record": func(dir string) error { return clearDir(t.Context(), dir) },
		"record that was never whole": func(dir string) error {
			if err := s.setAside(t.Context(), unusable{dir: dir, err: state.ErrNoRecord}); err != nil {
				return err
			}
			found, err := s.discarded()
			if err != nil || len(found) != 1 {
				return fmt.Errorf("discarded: %d directories: %w", len(found), err)
			}
			return s.removeLeftover(t.Context(), found[0])
		},
		"checkpoint under way":    func(dir string) error { return s.forgetJob(t.Context(), &job{dir: dir}) },
		"checkpoint of a restore": func(dir string) error { return dropCheckpoint(t.Context(), filepath.Dir(dir)) },
	}
	for name, remove := range removals {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), checkpointDir)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			nestDirectories(t, dir, 2_500)
			allowFewDescriptors(t)
			if err := remove(dir); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory is still there: %v", err)
			}
		})
	}
}
