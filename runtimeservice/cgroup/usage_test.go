package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// v1Files are the counters of a pod's cgroup on version 1.
var v1Files = map[string]string{
	"cpuacct/cpuacct.usage": "5000000000\n", "cpuacct/cpuacct.stat": "user 300\nsystem 200\n",
	"cpu/cpu.stat":                       "nr_periods 50\nnr_throttled 7\nthrottled_time 123000\n",
	"memory/memory.usage_in_bytes":       "10485760\n",
	"memory/memory.limit_in_bytes":       "67108864\n",
	"memory/memory.stat":                 "total_inactive_file 1048576\ntotal_rss 4194304\ntotal_pgfault 900\ntotal_pgmajfault 3\ntotal_swap 4096\n",
	"memory/memory.oom_control":          "oom_kill_disable 0\noom_kill 2\n",
	"memory/memory.failcnt":              "12\n",
	"memory/memory.max_usage_in_bytes":   "20971520\n",
	"memory/memory.memsw.limit_in_bytes": "134217728\n",
	"memory/memory.kmem.usage_in_bytes":  "262144\n",
	"pids/pids.current":                  "4\n",
	"pids/pids.max":                      "max\n",
	"pids/cgroup.procs":                  "22\n11\n",
	"pids/c1/cgroup.procs":               "33\n",
	"pids/c1/deep/cgroup.procs":          "44\n11\n",
}

// onV1 returns a manager of directories that look like version 1 cgroups.
func onV1(t *testing.T) *Manager {
	t.Helper()
	root := t.TempDir()
	mode := Mode{Hierarchies: map[string]string{}}
	for name, text := range v1Files {
		controller, file, _ := strings.Cut(name, "/")
		mode.Hierarchies[controller] = filepath.Join(root, controller)
		path := filepath.Join(root, controller, "pod", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Manager{mode: mode}
}

// Usage reads the same values as Stats, without those of metrics.
func TestUsageIsPartOfStats(t *testing.T) {
	for name, m := range map[string]*Manager{
		"v1": onV1(t),
		"v2": {mode: Mode{V2: true, Unified: "testdata/v2"}},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := m.Stats("/pod")
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Usage("/pod")
			if err != nil {
				t.Fatal(err)
			}
			if want.Memory.MaxUsage == 0 || want.Memory.Failcnt == 0 || want.Memory.OOMKills == 0 || want.Pids == nil || got.CPU.Usage == 0 || got.Memory.SwapUsage == nil {
				t.Errorf("the test reads nothing: %+v, %+v", want.Memory, got.Memory)
			}
			want.Memory.MaxUsage, want.Memory.Failcnt, want.Memory.OOMKills = 0, 0, 0
			want.Pids, want.IO, want.Hugetlb = nil, nil, nil
			want.Time, got.Time = time.Time{}, time.Time{}
			if !m.mode.V2 {
				want.CPU, want.Memory.KernelUsage = CPUStats{Usage: want.CPU.Usage}, 0
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if _, err := m.Usage("/none"); !errdefs.IsNotFound(err) {
				t.Errorf("Usage of nothing: %v", err)
			}
		})
	}
}

// Members finds the processes of every cgroup below, each once.
func TestMembers(t *testing.T) {
	for name, tc := range map[string]struct {
		m    *Manager
		want []int
	}{
		"v1": {onV1(t), []int{11, 22, 33, 44}},
		"v2": {&Manager{mode: Mode{V2: true, Unified: "testdata/v2"}}, []int{11, 22, 33}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := tc.m.Members("/pod"); err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("Members = %v, %v", got, err)
			}
			if _, err := tc.m.Members("/none"); !errdefs.IsNotFound(err) {
				t.Errorf("Members of nothing: %v", err)
			}
		})
	}
}

// A cgroup that only some hierarchies have is found there.
func TestMembersOfAPartialCgroup(t *testing.T) {
	m := onV1(t)
	if err := os.Rename(filepath.Join(m.mode.Hierarchies["pids"], "pod"), filepath.Join(m.mode.Hierarchies["memory"], "pod", "moved")); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Members("/pod"); err != nil || !slices.Equal(got, []int{11, 22, 33, 44}) {
		t.Errorf("Members = %v, %v", got, err)
	}
}

// In a real cgroup, Members and Pids agree at every depth.
func TestMembersOfRealCgroups(t *testing.T) {
	m, path := real(t)
	var pids []int
	for _, dir := range []string{path, path + "/a", path + "/a/b"} {
		if _, err := m.EnsureParent(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if m.mode.V2 && dir != path+"/a/b" {
			continue // processes and controllers only in the leaves
		}
		pids = append(pids, run(t, m, dir, "sleep 1000").Process.Pid)
	}
	slices.Sort(pids)
	all, err := m.Pids(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Members(path)
	if err != nil || !slices.Equal(got, all) {
		t.Errorf("Members = %v, %v; Pids = %v", got, err, all)
	}
	for _, pid := range pids {
		if !slices.Contains(got, pid) {
			t.Errorf("%d is not in %v", pid, got)
		}
	}
}

// BenchmarkMembers compares the list of one hierarchy with the list of all.
func BenchmarkMembers(b *testing.B) {
	m, path := real(b)
	for _, dir := range []string{path, path + "/a"} {
		if _, err := m.EnsureParent(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
	for name, list := range map[string]func(string) ([]int, error){"one hierarchy": m.Members, "all": m.Pids} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := list(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
