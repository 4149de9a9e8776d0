// Package signals restores what a program's own start may have changed about signals.
//
// glibc's posix_spawn, which GNU make uses, leaves the two signals that glibc keeps for its threads
// ignored in every program that it starts. The Go runtime installs no handler for these, and an
// ignored signal stays ignored over fork and exec, so that containers would inherit it. The package
// keeps nothing.
package signals

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The signals of glibc's threads, SIGCANCEL and SIGSETXID in nptl/internaltypes.h.
const (
	cancel = 32
	setxid = 33
)

// action is the kernel's struct sigaction on 64-bit machines. The zero value is the default action.
type action struct {
	handler, flags, restorer, mask uint64
}

// ignored is the handler SIG_IGN.
const ignored = 1

// RestoreInherited sets the signals that the Go runtime leaves alone to their default action if they
// are ignored. A program that starts others calls it first. Errors are the kernel's.
func RestoreInherited() error {
	for _, signal := range []uintptr{cancel, setxid} {
		var now, normal action
		if err := sigaction(signal, nil, &now); err != nil {
			return fmt.Errorf("read action of signal %d: %w", signal, err)
		}
		if now.handler != ignored {
			continue
		}
		if err := sigaction(signal, &normal, nil); err != nil {
			return fmt.Errorf("restore action of signal %d: %w", signal, err)
		}
	}
	return nil
}

func sigaction(signal uintptr, set, old *action) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal,
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(action{}.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
