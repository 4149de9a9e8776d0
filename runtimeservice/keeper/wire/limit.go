package wire

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrDescriptors means that a message arrived without its descriptors, because the receiver had no
// free descriptor numbers. In this case the kernel drops them (MSG_CTRUNC).
var ErrDescriptors = fmt.Errorf("receive descriptors: %w", unix.EMFILE)

// Exhausted reports whether err means that the process or the machine has no free descriptor.
func Exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// NameLimit adds the limit that was reached, and how to raise it, to an error for lack of
// descriptors. It returns other errors unchanged. program is this process's name, unit the systemd
// service that sets its limit.
func NameLimit(err error, program, unit string) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w: %s (process %d) has %s: raise LimitNOFILE of %s", err, program, os.Getpid(), descriptors(), unit)
	case errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: the machine has no file handle left: raise sysctl fs.file-max", err)
	}
	return err
}

// descriptors describes how many descriptors this process has, and its limit.
func descriptors() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return "no descriptor left"
	}
	// Since Linux 6.2, st_size of the directory is the number of entries. Reading the directory
	// would need a descriptor.
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/fd", &st); err != nil || st.Size == 0 {
		return fmt.Sprintf("no descriptor left of %d", limit.Cur)
	}
	return fmt.Sprintf("%d of %d descriptors open", st.Size, limit.Cur)
}
