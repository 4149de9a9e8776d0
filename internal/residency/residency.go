// Package residency gives back memory that the start of a program used and its further work does
// not need: free pages of Go's heap, and mapped pages of the program's own file.
//
// Initialising some hundred packages touches nearly every part of a large executable, and with
// each page that is touched, the kernel maps the fifteen around it. They stay mapped, and count as
// the process's memory, although a program at rest executes very few of them.
package residency

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Release collects garbage, returns free heap to the kernel, and unmaps the pages of the program's
// own file that no process could have changed. Pages that are needed again are mapped again from
// the page cache, by minor faults. It takes some milliseconds, and is meant for moments after which
// a program uses much less memory than before, such as the end of its start.
func Release() error {
	debug.FreeOSMemory()
	executable, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("release memory: %w", err)
	}
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("release memory: %w", err)
	}
	defer func() { _ = file.Close() }()
	found, err := unchanged(file, executable)
	for _, m := range found {
		err = errors.Join(err, m.unmapPages())
	}
	if err != nil {
		return fmt.Errorf("release memory: %w", err)
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ begin, end uintptr }

// unmapPages drops the pages of a mapping. The kernel reads them from the file again at the next
// access. Locked memory stays as it is.
func (m mapping) unmapPages() error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED)
	if errno != 0 && errno != unix.EINVAL { // EINVAL: the memory is locked
		return fmt.Errorf("unmap pages at %#x: %w", m.begin, errno)
	}
	return nil
}

// unchanged returns the private mappings of file in smaps (see proc_pid_smaps(5)) that cannot be
// written and have the file's content only. Others have pages that differ from the file, such as
// those of a position-independent executable after its relocation, or with a debugger's
// breakpoints; without these pages their content would be lost.
func unchanged(smaps io.Reader, file string) ([]mapping, error) {
	var found []mapping
	var current mapping
	ours := false
	for lines := bufio.NewScanner(smaps); ; {
		if !lines.Scan() {
			return found, lines.Err()
		}
		line := lines.Text()
		if value, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			if ours && strings.TrimSpace(value) == "0 kB" {
				found = append(found, current)
			}
			continue
		}
		var permissions, offset, device, inode string
		n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s", &current.begin, &current.end, &permissions, &offset, &device, &inode)
		if n == 6 {
			ours = strings.HasSuffix(line, " "+file) && permissions[1] == '-' && permissions[3] == 'p'
		}
	}
}
