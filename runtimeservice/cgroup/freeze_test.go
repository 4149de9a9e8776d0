package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/patience"
)

// TestFreeze holds that the processes of a frozen cgroup and of those below stop, and continue
// after the thaw.
func TestFreeze(t *testing.T) {
	m, path := real(t)
	below := path + "/below"
	if _, err := m.EnsureParent(t.Context(), below); err != nil {
		t.Fatal(err)
	}
	if m.mode.dir("freezer", path) == "" {
		t.Skip("no freezer here")
	}
	ticks := ticker(t, m, below)
	if _, err := ticks.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if frozen, err := m.Frozen(path); err != nil || frozen {
		t.Fatalf("Frozen = %v, %v before Freeze", frozen, err)
	}
	for range 2 { // freezing twice is freezing once
		if err := m.Freeze(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	if frozen, err := m.Frozen(path); err != nil || !frozen {
		t.Errorf("Frozen = %v, %v", frozen, err)
	}
	available(t, ticks)                // written before the freeze
	time.Sleep(200 * time.Millisecond) // twenty steps of a process that is not frozen
	if n := available(t, ticks); n > 0 {
		t.Errorf("a frozen process took %d steps", n)
	}
	for range 2 {
		if err := m.Thaw(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := ticks.SetReadDeadline(time.Now().Add(patience.Of(time.Minute))); err != nil {
		t.Fatal(err)
	}
	if _, err := ticks.Read(make([]byte, 1)); err != nil {
		t.Errorf("a thawed process does not go on: %v", err)
	}
	if frozen, err := m.Frozen(path); err != nil || frozen {
		t.Errorf("Frozen = %v, %v after Thaw", frozen, err)
	}
}

// ticker runs a process in the cgroup. It returns a pipe to which the process writes a byte at each
// of its steps, a hundred per second.
func ticker(t *testing.T, m *Manager, path string) (ticks *os.File) {
	t.Helper()
	run(t, m, path, "while :; do echo; sleep 0.01; done", func(cmd *exec.Cmd) {
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		ticks = out.(*os.File)
	})
	return ticks
}

// available reads what the pipe contains now and returns the number of bytes.
func available(t *testing.T, pipe *os.File) (n int) {
	t.Helper()
	raw, err := pipe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			more, err := unix.Read(int(fd), buf)
			if more <= 0 || err != nil {
				return true
			}
			n += more
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFreezeRefuses(t *testing.T) {
	m, path := real(t)
	if err := m.Freeze(t.Context(), path+"/none"); !errdefs.IsNotFound(err) {
		t.Errorf("Freeze of an absent cgroup = %v", err)
	}
	if err := m.Thaw(path + "/none"); err != nil {
		t.Errorf("Thaw of an absent cgroup = %v", err)
	}
	for _, p := range []string{"", "/", "/a/../b"} {
		if err := m.Freeze(t.Context(), p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Freeze of %q = %v", p, err)
		}
	}
	if _, err := m.EnsureParent(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	run(t, m, path, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The kernel may freeze before the context is checked.
	if err := m.Freeze(ctx, path); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Freeze after the end of its context = %v", err)
	}
	if err := m.Thaw(path); err != nil {
		t.Error(err)
	}
	without, err := newManager(Mode{Hierarchies: map[string]string{"memory": "/none"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := without.Freeze(t.Context(), path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Freeze without a freezer = %v", err)
	}
}
