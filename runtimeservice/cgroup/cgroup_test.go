package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	cgroupsv1 "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/micarun/mica/internal/patience"
)

// real returns a manager of this host and a cgroup path for this test, which the test's end
// removes.
func real(t testing.TB) (*Manager, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	mode, err := Detect()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	m, err := New(mode, Options{})
	if err != nil {
		t.Fatal(err)
	}
	path := "/mica-cgrouptest-" + strconv.FormatUint(rand.Uint64(), 36)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := m.KillAll(ctx, path); err != nil {
			t.Error(err)
		}
		if err := m.RemoveParent(ctx, path); err != nil {
			t.Error(err)
		}
		if left, err := m.list(path); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return m, path
}

// run starts a shell in the cgroup. The end of the test waits for it.
func run(t *testing.T, m *Manager, path, script string, prepare ...func(*exec.Cmd)) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+script)
	for _, f := range prepare {
		f(cmd)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for _, dir := range m.mode.dirs(path) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// eventually waits until f is true, for half a minute at most (scaled to this machine's speed).
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	wait := patience.Of(30 * time.Second)
	deadline := time.Now().Add(wait)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", wait, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestParentLifeCycle(t *testing.T) {
	m, path := real(t)
	ctx := t.Context()
	pod := path + "/pod"
	for i, want := range []bool{true, false} {
		created, err := m.EnsureParent(ctx, pod)
		if err != nil || created != want {
			t.Fatalf("EnsureParent, call %d = %v, %v", i+1, created, err)
		}
	}
	for _, dir := range m.mode.dirs(pod) {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if dir := m.mode.dir("cpuset", pod); !m.mode.V2 && dir != "" {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(dir, file)); err != nil || strings.TrimSpace(string(text)) == "" {
				t.Errorf("%s = %q, %v: no task could enter", file, text, err)
			}
		}
	}
	if got, err := m.list(path); err != nil || !slices.Equal(got, []string{path, pod}) {
		t.Errorf("List = %v, %v", got, err)
	}
	for range 2 {
		if err := m.RemoveParent(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := m.list(path); err != nil || len(got) != 0 {
		t.Errorf("List after RemoveParent = %v, %v", got, err)
	}
	if _, err := m.Stats(path); !errdefs.IsNotFound(err) {
		t.Errorf("Stats of a removed cgroup: %v", err)
	}
}

func TestRemoveParentKeepsBusy(t *testing.T) {
	m, path := real(t)
	if _, err := m.EnsureParent(t.Context(), path+"/pod"); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, m, path+"/pod", "exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := m.RemoveParent(ctx, path)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("RemoveParent of a busy cgroup = %v", err)
	}
	if pids, err := m.Pids(path); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Pids = %v, %v", pids, err)
	}
}

// TestKillAllForks kills a process tree that forks continuously, also in a cgroup below.
func TestKillAllForks(t *testing.T) {
	m, path := real(t)
	for _, p := range []string{path + "/a/b", path + "/c"} {
		if _, err := m.EnsureParent(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(m.mode.Controllers, "pids") {
		limit := int64(50)
		if err := m.SetResources(path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
			t.Fatal(err)
		}
	}
	run(t, m, path+"/a/b", `f() { while :; do sleep 0.01 & wait; done; }; f & f & f & f`)
	run(t, m, path+"/c", `trap "" TERM INT; sleep 1000 & wait`)
	eventually(t, "forks", func() bool {
		pids, err := m.Pids(path)
		return err == nil && len(pids) >= 6
	})
	if err := m.KillAll(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if pids, err := m.Pids(path); err != nil || len(pids) != 0 {
		t.Errorf("Pids after KillAll = %v, %v", pids, err)
	}
	if pids, err := m.Pids(path + "/none"); !errdefs.IsNotFound(err) {
		t.Errorf("Pids of an absent cgroup = %v, %v", pids, err)
	}
	for _, p := range []string{path, path + "/none"} {
		if err := m.KillAll(t.Context(), p); err != nil {
			t.Errorf("KillAll of an empty or absent cgroup = %v", err)
		}
	}
}

func TestStatsOfRealCgroup(t *testing.T) {
	m, path := real(t)
	if _, err := m.EnsureParent(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	limit, swap, quota, period, shares, pids := int64(64<<20), int64(96<<20), int64(5000), uint64(100000), uint64(512), int64(20)
	err := m.SetResources(path, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		Pids:   &specs.LinuxPids{Limit: &pids},
	})
	if err != nil {
		t.Fatal(err)
	}
	steady := filepath.Join(t.TempDir(), "steady")
	run(t, m, path, "x=$(head -c 4000000 /dev/zero | tr '\\0' x); : >"+steady+"; while :; do :; done")
	eventually(t, "steady use of memory", func() bool {
		_, err := os.Stat(steady)
		return err == nil
	})
	var s Stats
	eventually(t, "throttled use of the processor, and of memory", func() bool {
		if s, err = m.Stats(path); err != nil {
			t.Fatal(err)
		}
		return s.CPU.Usage > 50e6 && s.CPU.ThrottledPeriods > 0 && s.CPU.User > 0 &&
			s.Memory != nil && s.Memory.RSS >= 4000000 && s.Pids != nil && s.Pids.Current == 1
	})
	if s.Memory.Usage < s.Memory.RSS || s.Memory.Limit != uint64(limit) || s.Memory.WorkingSet > s.Memory.Usage ||
		s.Memory.PageFaults == 0 || s.Memory.MaxUsage < s.Memory.Usage/2 {
		t.Errorf("memory %+v", s.Memory)
	}
	if s.Memory.SwapLimit != nil && *s.Memory.SwapLimit != uint64(swap-limit) {
		t.Errorf("swap limit %d", *s.Memory.SwapLimit)
	}
	if s.Pids.Limit != 20 {
		t.Errorf("pids %+v", s.Pids)
	}
	if time.Since(s.Time) > time.Minute {
		t.Errorf("time %v", s.Time)
	}
}

func TestOOMKillsOfRealCgroup(t *testing.T) {
	m, path := real(t)
	if _, err := m.EnsureParent(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	limit := int64(16 << 20)
	if err := m.SetResources(path, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	cmd := run(t, m, path, "exec tail /dev/zero")
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("tail ended with %v", err)
	}
	if s, err := m.Stats(path); err != nil || s.Memory.OOMKills != 1 || s.Memory.Failcnt == 0 {
		t.Errorf("Stats = %+v, %v", s.Memory, err)
	}
}

func TestSetResourcesRefuses(t *testing.T) {
	m, path := real(t)
	if _, err := m.EnsureParent(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	n := int64(1)
	for name, r := range map[string]*specs.LinuxResources{
		"devices":  {Devices: []specs.LinuxDeviceCgroup{{}}},
		"block":    {BlockIO: &specs.LinuxBlockIO{}},
		"realtime": {CPU: &specs.LinuxCPU{RealtimeRuntime: &n}},
		"kernel":   {Memory: &specs.LinuxMemory{Kernel: &n}}, //nolint:staticcheck // deprecated: refused, not used
	} {
		if err := m.SetResources(path, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !m.mode.V2 {
		r := &specs.LinuxResources{Unified: map[string]string{"pids.max": "1"}}
		if err := m.SetResources(path, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("unified on v1: %v", err)
		}
	}
	if err := m.SetResources(path+"/none", &specs.LinuxResources{}); !errdefs.IsNotFound(err) {
		t.Errorf("absent cgroup: %v", err)
	}
	for _, p := range []string{"", "/", "/a/../b", "a/.."} {
		if err := m.RemoveParent(t.Context(), p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("RemoveParent(%q) = %v", p, err)
		}
		if err := m.KillAll(t.Context(), p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("KillAll(%q) = %v", p, err)
		}
	}
}

// onV2Env is set when the test runs itself on a unified hierarchy.
const onV2Env = "MICA_TEST_CGROUP_V2"

// TestOnV2 runs the tests of making, listing, killing and removing in a mount namespace whose
// /sys/fs/cgroup is the unified hierarchy. Its controllers are those that the host's v1 hierarchies
// do not use.
func TestOnV2(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv(onV2Env) != "" {
		t.Skip("needs root, and not to be there already")
	}
	mode, err := Detect()
	if err != nil || mode.V2 {
		t.Skipf("already on v2, or nothing: %v", err)
	}
	// The other cgroup mounts may belong to a CRIU that runs in another test.
	script := `umount -l /sys/fs/cgroup || exit 1
		for elsewhere in $(awk '$3 ~ /^cgroup2?$/ {print $2}' /proc/self/mounts); do umount -l "$elsewhere" || exit 1; done
		mount -t cgroup2 none /sys/fs/cgroup || exit 1
		exec "$0" "$@"`
	cmd := exec.Command("/bin/sh", "-c", script, os.Args[0], "-test.v", "-test.run", "TestParent|TestRemoveParent|TestKillAll|TestPodsAndInit|TestDetected|TestFreeze")
	cmd.Env = append(os.Environ(), onV2Env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 7 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDetectedV2(t *testing.T) {
	if os.Getenv(onV2Env) == "" {
		t.Skip("for TestOnV2")
	}
	if mode, err := Detect(); err != nil || !mode.V2 || mode.Unified != "/sys/fs/cgroup" || len(mode.Hierarchies) != 0 {
		t.Errorf("Detect = %+v, %v", mode, err)
	}
}

// TestStatsV2 reads a recorded v2 cgroup.
func TestStatsV2(t *testing.T) {
	m, err := newManager(Mode{V2: true, Unified: "testdata/v2", HugePageSizes: []string{"2MB", "1GB"}}, Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Stats("/pod")
	if err != nil {
		t.Fatal(err)
	}
	got.Time = time.Time{}
	swap, swapLimit := uint64(4096), uint64(0)
	want := Stats{
		CPU: CPUStats{
			Usage: 5_000_000_000, User: 3_000_000_000, System: 2_000_000_000, Periods: 50, ThrottledPeriods: 7, ThrottledTime: 123_000,
			BurstPeriods: 2, BurstTime: 9000,
			Pressure: &Pressure{Some: PressureLine{1.5, 2.25, 3, 1000}, Full: PressureLine{0.5, 0.25, 0, 500}},
		},
		Memory: &MemoryStats{
			Usage: 10485760, WorkingSet: 10485760 - 1048576, Limit: 67108864, MaxUsage: 20971520,
			RSS: 4194304, Cache: 5242880, MappedFile: 131072, KernelUsage: 262144, PageFaults: 900, MajorPageFaults: 3,
			SwapUsage: &swap, SwapLimit: &swapLimit, Failcnt: 12, OOMKills: 2,
			ActiveFile: 2048, InactiveFile: 1048576, Dirty: 512, Writeback: 256,
			Pressure: &Pressure{Some: PressureLine{Total: 9}, Full: PressureLine{Total: 8}},
		},
		Pids:    &PidsStats{Current: 4},
		Hugetlb: []HugetlbStats{{PageSize: "2MB", Usage: 2097152}},
		IO: []IOStats{
			{Major: 8, ReadBytes: 4096, WriteBytes: 8192, ReadOps: 1, WriteOps: 2, DiscardBytes: 3, DiscardOps: 4},
			{Major: 253, Minor: 1, ReadBytes: 1},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if pids, err := m.Pids("/pod"); err != nil || !slices.Equal(pids, []int{11, 22, 33}) {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	if list, err := m.list("/pod"); err != nil || !slices.Equal(list, []string{"/pod", "/pod/c1"}) {
		t.Errorf("List = %v, %v", list, err)
	}
	if _, err := m.Stats("/none"); !errdefs.IsNotFound(err) {
		t.Errorf("Stats of nothing: %v", err)
	}
}

func TestStatsReportsNonsense(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "memory.current"), []byte("many\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := &Manager{mode: Mode{V2: true, Unified: root}}
	if s, err := m.Stats("/"); err == nil || !strings.Contains(err.Error(), "memory.current") {
		t.Errorf("Stats = %+v, %v", s, err)
	}
}

func TestModeOf(t *testing.T) {
	v1 := func(options, at string) *mountinfo.Info {
		return &mountinfo.Info{FSType: "cgroup", VFSOptions: options, Mountpoint: at}
	}
	unified := &mountinfo.Info{FSType: "cgroup2", Mountpoint: "testdata/v2"}
	for _, c := range []struct {
		name   string
		mounts []*mountinfo.Info
		want   Mode
	}{
		{
			"v1 with shared mounts",
			[]*mountinfo.Info{v1("rw,cpu,cpuacct", "/c"), v1("rw,memory", "/m"), v1("rw,blkio", "/b"), v1("rw,xattr,name=systemd", "/s")},
			Mode{
				Hierarchies: map[string]string{"cpu": "/c", "cpuacct": "/c", "memory": "/m", "blkio": "/b", "name=systemd": "/s"},
				Controllers: []string{"cpu", "io", "memory"},
			},
		},
		{
			"hybrid",
			[]*mountinfo.Info{v1("rw,memory", "/m"), unified, v1("rw,memory", "/copy")},
			Mode{Unified: "testdata/v2", Hierarchies: map[string]string{"memory": "/m"}, Controllers: []string{"memory"}},
		},
		{"v2", []*mountinfo.Info{unified}, Mode{V2: true, Unified: "testdata/v2", Controllers: []string{"cpu", "io", "memory", "pids"}}},
	} {
		got, err := modeOf(c.mounts)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	if _, err := modeOf(nil); !errdefs.IsUnavailable(err) {
		t.Errorf("no mounts: %v", err)
	}
}

func TestPaths(t *testing.T) {
	fsm, err := newManager(Mode{}, Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	sdm, err := newManager(Mode{}, Options{Driver: Systemd})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m                      *Manager
		cri                    string
		parent, container, dir string
	}{
		{fsm, "/kubepods/pod1", "/kubepods/pod1", "/kubepods/pod1/c", "/kubepods/pod1/c"},
		{fsm, "kubepods.slice", "/kubepods.slice", "/kubepods.slice/c", "/kubepods.slice/c"},
		{fsm, "", "/mica/p", "/mica/p/c", "/mica/p/c"},
		{
			sdm, "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:mica:c",
			"/kubepods.slice/kubepods-pod1.slice/mica-c.scope",
		},
		{sdm, "", "/mica.slice/mica-p.slice", "mica-p.slice:mica:c", "/mica.slice/mica-p.slice/mica-c.scope"},
	} {
		parent, err := c.m.PodParent(c.cri, "p")
		if err != nil || parent != c.parent {
			t.Errorf("PodParent(%q) = %q, %v", c.cri, parent, err)
		}
		if got := c.m.ContainerPath(parent, "c"); got != c.container {
			t.Errorf("ContainerPath(%q) = %q", parent, got)
		}
		if got := c.m.ContainerDir(parent, "c"); got != c.dir {
			t.Errorf("ContainerDir(%q) = %q", parent, got)
		}
	}
	for _, c := range []struct {
		m   *Manager
		cri string
	}{{fsm, "/a/../b"}, {fsm, strings.Repeat("/x", 40)}, {fsm, "/" + strings.Repeat("x", 256)}, {fsm, "/" + strings.Repeat("x/", 600)}, {sdm, "/kubepods"}, {sdm, "a--b.slice"}, {sdm, "../a.slice"}} {
		if got, err := c.m.PodParent(c.cri, "p"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("PodParent(%q) = %q, %v", c.cri, got, err)
		}
	}
	if _, err := New(Mode{}, Options{Driver: "upstart"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown driver: %v", err)
	}
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, os.ErrNotExist) {
		if _, err := New(Mode{}, Options{Driver: Systemd}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("systemd driver without systemd: %v", err)
		}
	}
}

// BenchmarkStats compares the reader with the library's, which reads about the same files.
func BenchmarkStats(b *testing.B) {
	m, path := real(b)
	if _, err := m.EnsureParent(b.Context(), path); err != nil {
		b.Fatal(err)
	}
	b.Run("mica", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Stats(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("usage only", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Usage(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		library := libraryManager(b, m.mode, path)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := library.GetStats(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// libraryManager returns the library's manager of a cgroup.
func libraryManager(b *testing.B, mode Mode, path string) cgroups.Manager {
	b.Helper()
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	var library cgroups.Manager
	var err error
	if mode.V2 {
		library, err = fs2.NewManager(config, mode.dir("", path))
	} else {
		paths := map[string]string{}
		for _, controller := range []string{"cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb"} {
			if dir := mode.dir(controller, path); dir != "" {
				paths[controller] = dir
			}
		}
		library, err = cgroupsv1.NewManager(config, paths)
	}
	if err != nil {
		b.Fatal(err)
	}
	return library
}

func TestUnitConfig(t *testing.T) {
	for _, c := range []struct{ path, name, parent, prefix string }{
		{"/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice", "kubepods.slice", ""},
		{"/kubepods.slice", "kubepods.slice", "-.slice", ""},
		{"/kubepods.slice/kubepods-pod1.slice/mica-c0ffee.scope", "c0ffee", "kubepods-pod1.slice", "mica"},
	} {
		if cg := unitConfig(c.path); cg.Name != c.name || cg.Parent != c.parent || cg.ScopePrefix != c.prefix {
			t.Errorf("unitConfig(%s) = %+v", c.path, cg)
		}
	}
}

// TestPodsAndInit holds that a pod's cgroup is found by its ID and that its init has a leaf cgroup
// in every hierarchy.
func TestPodsAndInit(t *testing.T) {
	m, path := real(t)
	m, err := New(m.mode, Options{DefaultParent: path})
	if err != nil {
		t.Fatal(err)
	}
	if pods, err := m.ListPods("me"); err != nil || len(pods) != 0 {
		t.Errorf("ListPods of an absent parent = %v, %v", pods, err)
	}
	pod, err := m.PodParent("", "p1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.EnsureParent(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := m.Mark(pod, "me"); err != nil {
		t.Fatal(err)
	}
	if pods, err := m.ListPods("me"); err != nil || len(pods) != 1 || pods["p1"] != pod {
		t.Errorf("ListPods = %v, %v", pods, err)
	}
	procs, err := m.MakeInit(pod)
	if err != nil || len(procs) != len(m.mode.roots()) {
		t.Fatalf("MakeInit = %v, %v", procs, err)
	}
	for _, file := range procs {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := m.RemoveInit(t.Context(), pod); err != nil {
			t.Error(err)
		}
	}
	if left, err := m.list(pod); err != nil || !slices.Equal(left, []string{pod}) {
		t.Errorf("List = %v, %v", left, err)
	}
}

// A daemon removes the default parent only if it has made it, and only while it is empty.
func TestDefaultParentIsRemovedByItsMaker(t *testing.T) {
	m, path := real(t)
	m, err := New(m.mode, Options{DefaultParent: filepath.Join(path, "default")})
	if err != nil {
		t.Fatal(err)
	}
	parent := m.options.DefaultParent
	ensure := func(owner string) {
		t.Helper()
		if err := m.EnsureDefault(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(owner string, gone bool) {
		t.Helper()
		if err := m.RemoveDefault(owner); err != nil {
			t.Error(err)
		}
		if m.exists(parent) == gone {
			t.Errorf("removal for %q: gone is not %t", owner, gone)
		}
	}
	if _, err := m.EnsureParent(t.Context(), parent); err != nil { // another's
		t.Fatal(err)
	}
	ensure("me")
	remove("me", false)
	if err := m.RemoveParent(t.Context(), parent); err != nil {
		t.Fatal(err)
	}
	ensure("me")
	ensure("other")
	remove("other", false)
	child := filepath.Join(parent, "child")
	if _, err := m.EnsureParent(t.Context(), child); err != nil {
		t.Fatal(err)
	}
	remove("me", false)
	if err := m.RemoveParent(t.Context(), child); err != nil {
		t.Fatal(err)
	}
	remove("me", true)
	remove("me", true)
}

// A path that the kernel cannot have can be removed, so that a pod that was refused for it can.
func TestRemoveOfImpossiblePaths(t *testing.T) {
	m, _ := real(t)
	for _, path := range []string{strings.Repeat("/x", 3000), "/" + strings.Repeat("x", 300)} {
		if err := m.RemoveParent(t.Context(), path); err != nil {
			t.Errorf("remove a path of %d bytes: %.200v", len(path), err)
		}
		if err := m.RemoveInit(t.Context(), path); err != nil {
			t.Errorf("remove the init's below a path of %d bytes: %.200v", len(path), err)
		}
	}
}

// list returns the cgroups at and below prefix in any hierarchy, sorted, parents before children.
func (m *Manager) list(prefix string) ([]string, error) {
	var out []string
	for _, root := range m.mode.roots() {
		start := filepath.Join(root, filepath.Join("/", prefix))
		err := filepath.WalkDir(start, func(p string, e fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if e.IsDir() {
				out = append(out, path.Join("/", strings.TrimPrefix(p, root)))
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups below %s: %w", prefix, err)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
