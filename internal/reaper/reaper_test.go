package reaper

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newReaper(t *testing.T, o Options) *Reaper {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// orphan creates a process that is reparented to the test process, and returns its pid. The shell
// is replaced by exec before it ends, since a shell would reap a child that is already dead.
func orphan(t *testing.T, r *Reaper, script string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "("+script+") >/dev/null 2>&1 & exec /bin/echo $!")
	var out strings.Builder
	cmd.Stdout = &out
	release, err := r.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func gone(pid int) func() bool {
	return func() bool { return unix.Kill(pid, 0) == unix.ESRCH }
}

func TestCollectsOrphans(t *testing.T) {
	r := newReaper(t, Options{})
	for range 20 {
		pid := orphan(t, r, "exit 3")
		until(t, "orphan collected", gone(pid))
	}
}

func TestWaitForOrphan(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   Status
	}{
		{"sleep 0.2; exit 7", Status{Code: 7}},
		{"exit 0", Status{}},
		{"sh -c 'kill -9 $PPID'; sleep 5", Status{Code: 137, Signal: 9}},
	} {
		t.Run(tc.script, func(t *testing.T) {
			r := newReaper(t, Options{})
			hold := r.Hold()
			pid := orphan(t, r, tc.script)
			release := r.Own(pid)
			hold()
			got, err := r.Wait(t.Context(), pid)
			release()
			if err != nil || got != tc.want {
				t.Fatalf("Wait = %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestWaitErrors(t *testing.T) {
	r := newReaper(t, Options{})
	if _, err := r.Wait(t.Context(), 1); !errors.Is(err, unix.ECHILD) && !errors.Is(err, context.Canceled) {
		// Process 1 is not a child, so the first wait4 fails.
		t.Errorf("Wait(1) = %v", err)
	}
	pid := orphan(t, r, "sleep 30")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Wait(ctx, pid); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait of a living process = %v", err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	until(t, "killed orphan collected", gone(pid))
}

// Property: no child that os/exec waits for is ever reaped by the Reaper, however many orphans die
// meanwhile, and even if os/exec waits late.
func TestLeavesOthersChildren(t *testing.T) {
	r := newReaper(t, Options{Grace: 3 * time.Second})
	var orphans []int
	for i := range 30 {
		orphans = append(orphans, orphan(t, r, "exit 1"))
		cmd := exec.Command("/bin/sh", "-c", "exit 5")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			until(t, "child is a zombie", func() bool { return state(cmd.Process.Pid) == "Z" })
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Fatalf("os/exec: %v", err)
		}
	}
	for _, pid := range orphans {
		until(t, "orphan collected", gone(pid))
	}
}

func state(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	s, _, _ := strings.Cut(rest, " ")
	return s
}

func TestStartedChildIsOwned(t *testing.T) {
	r := newReaper(t, Options{})
	cmd := exec.Command("/bin/true")
	release, err := r.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "child is a zombie", func() bool { return state(cmd.Process.Pid) == "Z" })
	pid := orphan(t, r, "exit 0")
	if err := cmd.Wait(); err != nil {
		t.Errorf("Wait: %v", err)
	}
	release()
	until(t, "orphan collected once the owned child is gone", gone(pid))
}
