package podns

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// Do runs f in the network namespace pinned at nsPath, on a separate thread that ends after f, and
// returns f's error. An empty nsPath is the caller's namespace (the node's, for a pod with host
// networking).
//
// Sockets that f opens belong to the namespace and may be used anywhere afterwards. Goroutines that
// f starts do not run in the namespace. Do does not limit f's run time. It is safe for concurrent
// use.
func Do(nsPath string, f func() error) error {
	if nsPath == "" {
		return f()
	}
	fd, err := unix.Open(nsPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", nsPath, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return osthread.Run(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", nsPath, err)
		}
		return f()
	})
}
