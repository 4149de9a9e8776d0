// Package osthread runs functions on operating system threads of their own, for system calls that
// change the calling thread: unshare, setns, setresuid and the like.
//
// The thread ends afterwards together with the changes, so no other code of the process runs on it.
// The keeper uses this package, so it imports only the standard library and x/sys.
package osthread

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a separate operating system thread, which is never the main thread, and returns f's
// error. The thread runs nothing else meanwhile and ends afterwards, together with all changes that
// f made to it. Goroutines that f starts run on other threads. If f ends its goroutine instead of
// returning (runtime.Goexit), Run returns an error. Run may be called concurrently.
func Run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("thread ended early")
		defer func() { done <- err }()
		err = locked(f)
	}()
	return <-done
}

// locked locks the calling goroutine to its thread for good, so that the Go runtime ends the thread
// with the goroutine (runtime.LockOSThread). If it is on the main thread, which cannot end, it
// keeps that thread locked while another goroutine, which is then on another thread, runs f.
func locked(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return Run(f)
	}
	return f()
}
