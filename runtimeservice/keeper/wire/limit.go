package wire

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrDescriptors says that a message came without its descriptors, because the
// receiver had no number free for them. The kernel drops them (MSG_CTRUNC).
var ErrDescriptors = fmt.Errorf("receive descriptors: %w", unix.EMFILE)

// Exhausted tells whether err is a lack of descriptors, of the process or the machine.
func Exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// NameLimit adds to an error that is a lack of descriptors whose limit was
// reached, and what raises it. Other errors stay as they are. program is this
// process's name, unit the service that sets its limit.
func NameLimit(err error, program, unit string) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w: %s (process %d) has %s: raise LimitNOFILE of %s", err, program, os.Getpid(), descriptors(), unit)
	case errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: the machine has no file handle left: raise sysctl fs.file-max", err)
	}
	return err
}

// descriptors says how many descriptors this process has and may have.
func descriptors() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "no descriptor left"
	}
	// From Linux 6.2 on, the size is the number of entries. Reading the directory
	// would take a descriptor.
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/fd", &st); err != nil || st.Size == 0 {
		return fmt.Sprintf("no descriptor left of %d", limit.Cur)
	}
	return fmt.Sprintf("%d of %d descriptors open", st.Size, limit.Cur)
}
