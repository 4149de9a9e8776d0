package cgroup

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/errdefs"
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
	<-ticks
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
	for drained := false; !drained; { // output written before the freeze
		select {
		case <-ticks:
		case <-time.After(50 * time.Millisecond):
			drained = true
		}
	}
	select {
	case <-ticks:
		t.Error("a frozen process went on")
	case <-time.After(200 * time.Millisecond): // twenty of its steps
	}
	for range 2 {
		if err := m.Thaw(path); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-ticks:
	case <-time.After(10 * time.Second):
		t.Error("a thawed process does not go on")
	}
	if frozen, err := m.Frozen(path); err != nil || frozen {
		t.Errorf("Frozen = %v, %v after Thaw", frozen, err)
	}
}

// ticker runs a process in the cgroup and reports each of its steps, a hundred per second.
func ticker(t *testing.T, m *Manager, path string) <-chan struct{} {
	t.Helper()
	ticks := make(chan struct{}, 1000)
	run(t, m, path, "while :; do echo; sleep 0.01; done", func(cmd *exec.Cmd) {
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				ticks <- struct{}{}
			}
		}()
	})
	return ticks
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
