package podns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
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
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", nsPath, err)
		}
		return f()
	})
}

// onThread runs f on a separate operating system thread, which is never the main thread. The thread
// runs nothing else meanwhile and ends afterwards, together with all changes that f made to it. If
// f ends its goroutine instead of returning (runtime.Goexit), onThread returns an error.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("thread ended early")
		defer func() { done <- err }()
		err = lockedRun(f)
	}()
	return <-done
}

// lockedRun locks the calling goroutine to its thread for good, so that the Go runtime ends the
// thread with the goroutine (runtime.LockOSThread). If it is on the main thread, it keeps that
// thread locked while another goroutine, which is then on another thread, runs f.
func lockedRun(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return onThread(f)
	}
	return f()
}
