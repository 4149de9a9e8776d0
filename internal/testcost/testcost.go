// Package testcost checks in tests that the cost of an operation grows in proportion to its input,
// so that hostile input cannot make it expensive. It measures CPU time of one thread, which other
// load of the machine hardly changes, or allocated memory. It also makes large JSON documents. The
// package is for tests only: no program of Mica links it.
package testcost

import (
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Linear fails the test unless the CPU time of do(n) is at most proportional to n. It compares n
// with n/16: the cost may be four times a linear one, a quadratic cost would be 16 times that. The
// garbage collector may add 20 milliseconds. what names the input in messages. do runs several
// times on the calling goroutine.
func Linear(t *testing.T, what string, n int, do func(n int)) {
	t.Helper()
	const more, margin, noise = 16, 4, 20 * time.Millisecond
	small, large := cpuTime(t, func() { do(n / more) }), cpuTime(t, func() { do(n) })
	t.Logf("%s: %d in %v, %d in %v", what, n/more, small, n, large)
	if large > margin*more*small+noise {
		t.Errorf("%s: %d cost %v, %d cost %v, more than in proportion", what, n/more, small, n, large)
	}
}

// cpuTime returns do's CPU time on one thread, the minimum of three runs.
func cpuTime(t *testing.T, do func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	used := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	best := time.Duration(1<<63 - 1)
	for range 3 {
		before := used()
		do()
		best = min(best, used()-before)
	}
	return best
}

// Allocated returns the number of bytes that f allocates, including those freed since.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Repeated returns text n times, separated by commas.
func Repeated(text string, n int) string {
	return strings.TrimSuffix(strings.Repeat(text+",", n), ",")
}

// Numbered returns n members of a JSON object with distinct keys.
func Numbered(n int, value string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(`"` + strconv.Itoa(i) + `":` + value + ",")
	}
	return strings.TrimSuffix(b.String(), ",")
}
