// Package descriptors sets the limit of open file descriptors for this process and its children.
//
// At its start, the Go runtime raises a program's soft limit, and gives children of the program the
// original soft limit. In runc before 1.1.13, this affects containers: runc sets the container's
// limit, and then its init restores the soft limit that runc was started with. If the soft limit
// equals the hard limit from the start, nothing is raised and nothing restored. The package has no
// state and does not change the hard limit.
package descriptors

import (
	"fmt"
	"syscall"
)

// RaiseLimit raises the soft limit of descriptors to the hard limit, for this process and for every
// program that it starts. Programs that start OCI runtimes call it first. Errors are the kernel's.
// It must not be called concurrently with the start of a program.
func RaiseLimit() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of descriptors: %w", err)
	}
	limit.Cur = limit.Max
	// Only Setrlimit of package syscall makes the Go runtime drop the original limit.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise limit of descriptors to %d: %w", limit.Max, err)
	}
	return nil
}
