package cgroup

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// onSystemd returns a manager of this host with the systemd driver, and a pod's slice for this
// test, which the test's end removes.
func onSystemd(t *testing.T) (m *Manager, pod string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	mode, err := Detect()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	m, err = New(mode, Options{Driver: Systemd, DefaultParent: "mica_test" + strconv.FormatUint(rand.Uint64(), 36) + ".slice"})
	if errdefs.IsFailedPrecondition(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if pod, err = m.PodParent("", "pod1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, p := range []string{pod, path.Dir(pod)} {
			if err := m.RemoveParent(ctx, p); err != nil {
				t.Error(err)
			}
		}
		out, err := exec.CommandContext(ctx, "systemctl", "list-units", "--all", "--plain", "--no-legend", path.Base(path.Dir(pod)), path.Base(pod)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("units left behind: %v: %s", err, out)
		}
	})
	return m, pod
}

// file reads a file of a v2 cgroup.
func (m *Manager) file(t *testing.T, path, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.mode.dir("", path), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestSystemdSlices holds that pods are slices whose limits systemd knows, so that a daemon-reload
// keeps them.
func TestSystemdSlices(t *testing.T) {
	m, pod := onSystemd(t)
	for i, want := range []bool{true, false} {
		if created, err := m.EnsureParent(t.Context(), pod); err != nil || created != want {
			t.Fatalf("EnsureParent, call %d = %v, %v", i+1, created, err)
		}
	}
	if err := m.Mark(pod, "me"); err != nil {
		t.Fatal(err)
	}
	if pods, err := m.ListPods("me"); err != nil || len(pods) != 1 || pods["pod1"] != pod {
		t.Errorf("ListPods = %v, %v", pods, err)
	}
	if !m.mode.V2 {
		return // the rest reads files of v2
	}
	limit, quota, period, shares, pids := int64(64<<20), int64(5000), uint64(100000), uint64(512), int64(20)
	if err := m.SetResources(pod, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}); err != nil {
		t.Fatal(err)
	}
	weight := strconv.FormatUint(cgroups.ConvertCPUSharesToCgroupV2Value(shares), 10)
	for _, when := range []string{"after SetResources", "after systemd read its units again"} {
		for name, want := range map[string]string{
			"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "5000 100000", "cpu.weight": weight, "pids.max": "20",
		} {
			if got := m.file(t, pod, name); got != want {
				t.Errorf("%s %s is %q, want %q", when, name, got, want)
			}
		}
		if out, err := exec.CommandContext(t.Context(), "systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("systemctl daemon-reload: %v: %s", err, out)
		}
	}
}

// TestSystemdInit holds that the cgroup of a pod's init in its slice survives a daemon-reload and
// is removed with the pod.
func TestSystemdInit(t *testing.T) {
	m, pod := onSystemd(t)
	if _, err := m.EnsureParent(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := m.MakeInit(pod); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, m, path.Join(pod, initName), "exec sleep 1000")
	if out, err := exec.CommandContext(t.Context(), "systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("systemctl daemon-reload: %v: %s", err, out)
	}
	if got, err := m.Pids(path.Join(pod, initName)); err != nil || len(got) != 1 || got[0] != cmd.Process.Pid {
		t.Errorf("processes of the init's cgroup: %v, %v", got, err)
	}
	if err := m.KillAll(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := m.RemoveInit(t.Context(), pod); err != nil {
		t.Error(err)
	}
}

// TestKeepSwapOff holds that only a swap limit of zero is passed to systemd, if the kernel has one.
func TestKeepSwapOff(t *testing.T) {
	m := &Manager{mode: Mode{V2: true, Unified: "testdata/v2"}}
	mine := map[string]string{"memory.swap.max": "4096"}
	for _, c := range []struct {
		name, path string
		give       cgroups.Resources
		want       map[string]string
	}{
		{"no swap", "/pod", cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20}, map[string]string{"memory.swap.max": "0"}},
		{"some swap", "/pod", cgroups.Resources{Memory: 1 << 20, MemorySwap: 2 << 20}, nil},
		{"no limit", "/pod", cgroups.Resources{Memory: -1, MemorySwap: -1}, nil},
		{"nothing said", "/pod", cgroups.Resources{}, nil},
		{"said otherwise", "/pod", cgroups.Resources{Memory: 1, MemorySwap: 1, Unified: mine}, mine},
		{"a kernel without", "/pod/c1", cgroups.Resources{Memory: 1, MemorySwap: 1}, nil},
	} {
		m.keepSwapOff(c.path, &c.give)
		if !maps.Equal(c.give.Unified, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.give.Unified, c.want)
		}
	}
}
