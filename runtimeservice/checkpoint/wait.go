package checkpoint

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// criuGrace is how long a CRIU whose runtime was killed may continue. It ends by itself once it
	// has released the processes in order.
	criuGrace = 15 * time.Second
	// execGrace is how long a started container may take to execute its own program.
	execGrace = 10 * time.Second
)

// Executable identifies the executable file of a process.
type Executable struct{ dev, ino uint64 }

// ExecutableOf returns what a process executes, zero if the process has ended.
func ExecutableOf(pid int) Executable {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join("/proc", strconv.Itoa(pid), "exe"), &st); err != nil {
		return Executable{}
	}
	return Executable{uint64(st.Dev), st.Ino}
}

// AwaitExec waits until a process that was started just now executes something else than waiter.
// The OCI runtime's start can return earlier, and CRIU cannot dump a process whose executable is on
// no mount of the container. A process that still executes waiter after 10 seconds was meant to. A
// zero waiter does not wait. AwaitExec returns only the error of ctx.
func AwaitExec(ctx context.Context, pid int, waiter Executable) error {
	deadline := time.Now().Add(execGrace)
	for pause := time.Millisecond; waiter != (Executable{}) && ExecutableOf(pid) == waiter && time.Now().Before(deadline); pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the program of process %d: %w", pid, ctx.Err())
		case <-time.After(pause):
		}
	}
	return nil
}

// AwaitDumps waits until no OCI runtime and no CRIU dumps into dir or below. It kills those that
// still do after 15 seconds: until then a CRIU whose runtime was killed releases the processes in
// order. It returns only the error of ctx.
func AwaitDumps(ctx context.Context, dir string) error { return awaitDumps(ctx, dir, criuGrace) }

func awaitDumps(ctx context.Context, dir string, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids := dumpersInto(dir)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL) // ended meanwhile, or found again
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of CRIU, processes %v: %w", pids, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// dumpersInto returns the other processes that dump into dir.
func dumpersInto(dir string) []int {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err == nil && pid != os.Getpid() && dumpsInto(filepath.Join("/proc", p.Name()), dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dumpsInto recognizes CRIU and the OCI runtime by a directory that both keep open, and a runtime
// that has not opened it yet by its command line.
func dumpsInto(proc, dir string) bool {
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err == nil && strings.Contains(string(line), "\x00--image-path\x00"+dir+"/") {
		return true
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		link := filepath.Join(proc, "fd", fd.Name())
		target, err := os.Readlink(link)
		if err != nil || target != dir && !strings.HasPrefix(target, dir+"/") {
			continue
		}
		if st, err := os.Stat(link); err == nil && st.IsDir() {
			return true
		}
	}
	return false
}
