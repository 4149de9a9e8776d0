// Package signals restores signal actions that a program may have inherited from its parent.
//
// glibc reserves two signals for its threads. posix_spawn of glibc, which GNU make uses, leaves
// them ignored in every program that it starts. The Go runtime installs no handler for them, and an
// ignored signal stays ignored over fork and exec, so containers would inherit it. The package has
// no state.
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

// RestoreInherited sets ignored signals for which the Go runtime has no handler to their default
// action. Programs that start others call it first. Errors are the kernel's. It may be called
// concurrently.
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
