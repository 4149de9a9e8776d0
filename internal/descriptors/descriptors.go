// Package descriptors sets the limit of open file descriptors for this process and its children.
//
// The Go runtime raises the soft limit of a program at its start. It gives children of the program the
// original soft limit back. runc before 1.1.13 is such a program twice: its init restores the soft
// limit that runc was started with, after runc has set the container's. A limit that needs no raising
// is not restored. The package keeps nothing and leaves the hard limit alone.
package descriptors

import (
	"fmt"
	"syscall"
)

// RaiseLimit raises the soft limit of descriptors to the hard limit, for this process and for every
// program that it starts. A program that starts OCI runtimes calls it first. Errors are the kernel's.
func RaiseLimit() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of descriptors: %w", err)
	}
	limit.Cur = limit.Max
	// Only package syscall's Setrlimit makes the Go runtime forget the original limit.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise limit of descriptors to %d: %w", limit.Max, err)
	}
	return nil
}
