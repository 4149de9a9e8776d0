// Package testdescriptors takes the free file descriptors of a test's process, so that a test can
// see what the code does without one. It lowers the soft limit of the process, which all of its
// threads share: tests that use it must not run in parallel with others. The package is for tests
// only.
package testdescriptors

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Leave leaves the process count free descriptors, which begin with the number lowest, until restore
// is called, or else until the test ends. restore may be called more than once.
func Leave(t *testing.T, count int) (lowest int, restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// The kernel gives the lowest free number.
	lowest, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(lowest)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowest + count), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore = sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Errorf("restore the limit of descriptors: %v", err)
		}
	})
	t.Cleanup(restore)
	return lowest, restore
}
