package podns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f in the network namespace pinned at nsPath, on a thread of its own
// that ends with f, and returns f's error. An empty nsPath is the namespace of
// the caller (the node's, for a pod with host networking).
//
// Sockets that f opens belong to the namespace and may be used anywhere
// afterwards. Goroutines that f starts run outside of it. Do does not bound
// the time of f. It is safe for concurrent use.
func Do(nsPath string, f func() error) error {
	if nsPath == "" {
		return f()
	}
	fd, err := unix.Open(nsPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", nsPath, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", nsPath, err)
		}
		return f()
	})
}

// onThread runs f on an operating system thread that is not the main thread,
// that runs nothing else meanwhile, and that ends afterwards together with
// everything that f changed about it. An f that ends its goroutine instead of
// returning (runtime.Goexit) is an error.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("thread ended early")
		defer func() { done <- err }()
		err = lockedRun(f)
	}()
	return <-done
}

// lockedRun locks the calling goroutine to its thread for good, so that the Go
// runtime ends the thread with the goroutine (runtime.LockOSThread). On the
// main thread it steps aside: it holds that thread while another goroutine,
// which then cannot be on it, does the work.
func lockedRun(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return onThread(f)
	}
	return f()
}
