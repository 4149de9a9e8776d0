package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// onV1Freezer is real with a sleeping process in path/pod/c/below, on a host with a v1 freezer.
func onV1Freezer(t *testing.T) (m *Manager, path string, victim *exec.Cmd) {
	t.Helper()
	m, path = real(t)
	if m.mode.V2 || m.mode.dir("freezer", path) == "" {
		t.Skip("cgroup v2 kills frozen processes itself")
	}
	if _, err := m.EnsureParent(t.Context(), path+"/pod/c/below"); err != nil {
		t.Fatal(err)
	}
	return m, path, run(t, m, path+"/pod/c/below", "exec sleep 1000")
}

// freezeFor freezes a cgroup until the end of the test.
func freezeFor(t *testing.T, m *Manager, path string) {
	t.Helper()
	if err := m.Freeze(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Thaw(path); err != nil {
			t.Error(err)
		}
	})
}

// TestFrozenProcessesDie holds that a kill ends processes if any cgroup on their path is frozen.
// Other processes of a frozen ancestor stay frozen.
func TestFrozenProcessesDie(t *testing.T) {
	for _, frozen := range []string{"/pod/c/below", "/pod/c", "/pod", ""} {
		for name, kill := range map[string]func(*Manager, string) error{
			"KillAll": func(m *Manager, path string) error { return m.KillAll(t.Context(), path) },
			"KillFrozen": func(m *Manager, path string) error {
				return retry(t.Context(), func() (bool, error) {
					pids, err := m.pids(path)
					return err == nil && len(pids) == 0, errors.Join(err, m.KillFrozen(path))
				}, t.Context().Err)
			},
		} {
			t.Run(name+" of "+frozen, func(t *testing.T) {
				m, path, victim := onV1Freezer(t)
				if _, err := m.EnsureParent(t.Context(), path+"/pod/other"); err != nil {
					t.Fatal(err)
				}
				other := run(t, m, path+"/pod/other", "exec sleep 1000")
				freezeFor(t, m, path+frozen)
				if err := kill(m, path+"/pod/c"); err != nil {
					t.Fatal(err)
				}
				if err := victim.Wait(); err == nil {
					t.Error("a killed process ended well")
				}
				if !strings.Contains(frozen, "/c") {
					text, err := os.ReadFile(filepath.Join(m.mode.dir("freezer", path+"/pod/other"), "freezer.state"))
					if err != nil || strings.TrimSpace(string(text)) == "THAWED" {
						t.Errorf("the neighbour of pid %d is %q, %v; want it frozen as before", other.Process.Pid, text, err)
					}
				}
			})
		}
	}
}

// TestKillFrozenSparesWhatRuns holds that KillFrozen kills nothing in a cgroup that is not frozen.
func TestKillFrozenSparesWhatRuns(t *testing.T) {
	m, path := real(t)
	if _, err := m.EnsureParent(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, m, path, "exec sleep 1000")
	for _, p := range []string{path, path + "/none"} {
		if err := m.KillFrozen(p); err != nil {
			t.Errorf("KillFrozen(%q) = %v", p, err)
		}
	}
	if pids, err := m.pids(path); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes %v, %v; want %d to be spared", pids, err, cmd.Process.Pid)
	}
}

// TestKillOutside holds that processes exit even if the caller does not know their frozen cgroup.
func TestKillOutside(t *testing.T) {
	m, path, victim := onV1Freezer(t)
	freezeFor(t, m, path)
	if err := m.KillOutside([]int{victim.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	if err := m.KillOutside([]int{victim.Process.Pid}); err != nil {
		t.Errorf("KillOutside of a process that is gone = %v", err)
	}
}

// TestKillAllOutlastsWhoFreezes freezes a cgroup repeatedly while it is being killed.
func TestKillAllOutlastsWhoFreezes(t *testing.T) {
	m, path, _ := onV1Freezer(t)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			_ = os.WriteFile(filepath.Join(m.mode.dir("freezer", path+"/pod/c"), "freezer.state"), []byte("FROZEN"), 0)
			time.Sleep(time.Millisecond)
		}
	}()
	err := m.KillAll(t.Context(), path+"/pod/c")
	cancel()
	<-stopped
	if err != nil {
		t.Error(err)
	}
}
