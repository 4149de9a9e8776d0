package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

func TestResources(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500,
	}
	id := f.start(p, config)
	if got := f.exec(id, "cat", "/proc/1/oom_score_adj"); got != "500\n" {
		t.Errorf("oom_score_adj is %q", got)
	}
	script := "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max cpu/cpu.cfs_quota_us cpu/cpu.shares cpu.max 2>/dev/null; true"
	got := f.exec(id, "sh", "-c", script)
	if got != "67108864\n50000\n512\n" && got != "67108864\n50000 100000\n" {
		t.Errorf("cgroup files are %q", got)
	}
	f.no(f.Runtime.UpdateContainerResources(f.ctx, id, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuQuota: 20_000, CpuPeriod: 100_000},
	}))
	got = f.exec(id, "sh", "-c", script)
	if !strings.HasPrefix(got, "33554432\n20000") {
		t.Errorf("after the update cgroup files are %q", got)
	}
	if limit := f.status(id).GetResources().GetLinux().GetMemoryLimitInBytes(); limit != 32<<20 {
		t.Errorf("memory limit in the status is %d, want %d", limit, 32<<20)
	}
}

// The kubelet resizes a pod: oom_score_adj depends on a container's requests.
func TestUpdateOfTheOOMScore(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "sleep 1000 & sh -c 'echo 700 > /proc/self/oom_score_adj; exec sleep 1001' & exec sleep 1002")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 500}
	id := f.start(p, config)
	scores := func() string {
		return f.exec(id, "sh", "-c", "for n in 1000 1001 1002; do cat /proc/$(pgrep -f \"^sleep $n\")/oom_score_adj; done")
	}
	f.eventually("the processes have their scores", func() bool {
		out, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"pgrep", "sleep"}, 20*time.Second)
		return err == nil && strings.Count(string(out), "\n") == 3 && scores() == "500\n700\n500\n"
	})
	update := func(score int64) error {
		return f.Runtime.UpdateContainerResources(f.ctx, id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{OomScoreAdj: score}})
	}
	f.no(update(900))
	if got := scores(); got != "900\n700\n900\n" {
		t.Errorf("scores are %q", got)
	}
	if got := f.status(id).GetResources().GetLinux().GetOomScoreAdj(); got != 900 {
		t.Errorf("the status says %d", got)
	}
	if err := update(1001); status.Code(err) != codes.InvalidArgument {
		t.Errorf("invalid oom_score_adj: %v", err)
	}
}

// Many containers have OOM kills, several at a time, of their first process or of a child. Each is
// reported as OOMKilled. Containers killed by other signals are not.
func TestOOMKilled(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	f.pull(busyboxImage)
	const eat = "dd if=/dev/zero of=/dev/null bs=64M count=1"
	var group sync.WaitGroup
	for n := range 4 {
		group.Go(func() {
			for range 4 {
				config := f.containerConfig(busyboxImage, "sh", "-c", eat)
				if n%2 == 0 {
					config.Command = strings.Fields(eat)
				}
				config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
				got := f.await(f.start(p, config))
				if got.Reason != "OOMKilled" || got.ExitCode != 137 {
					t.Errorf("%q: reason %q and code %d, want OOMKilled and 137", config.Command, got.Reason, got.ExitCode)
				}
			}
		})
	}
	group.Wait()
	killed := f.await(f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "kill -9 $$")))
	other := f.await(f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "sh -c 'kill -9 $$'; exit $?")))
	if killed.Reason == "OOMKilled" || other.Reason != "Error" || other.ExitCode != 137 {
		t.Errorf("containers killed otherwise have the reasons %q and %q", killed.Reason, other.Reason)
	}
}

// A pod's limits are written to its cgroup, even if the caller made the cgroup, and verbose status
// shows them.
func TestPodResources(t *testing.T) {
	f := start(t)
	lent := f.podConfig()
	lent.Linux.CgroupParent = f.CgroupParent() + "/kubepods/pod1"
	for name, p := range map[string]pod{"own": f.runPod(f.podConfig()), "lent": f.runPod(lent)} {
		id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
		_, err := f.Runtime.UpdatePodSandboxResources(f.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id,
			Overhead:     &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20},
			Resources:    &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 30_000, CpuPeriod: 100_000, CpuShares: 300},
		})
		f.no(err)
		parent := f.cgroupOf(id, "memory")
		if got := f.cgroupFile(filepath.Dir(parent), "memory.limit_in_bytes", "memory.max"); got != "134217728" {
			t.Errorf("%s cgroup: memory limit %q, want 128 MiB", name, got)
		}
		if got := f.cgroupFile(filepath.Dir(f.cgroupOf(id, "cpu")), "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "30000") {
			t.Errorf("%s cgroup: CPU quota %q, want 30000", name, got)
		}
		response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, true)
		f.no(err)
		var info struct {
			Config struct {
				Linux struct {
					Resources, Overhead struct {
						MemoryLimitInBytes int64 `json:"memory_limit_in_bytes"`
					}
				}
			}
		}
		f.no(json.Unmarshal([]byte(response.Info["info"]), &info))
		if got := info.Config.Linux; got.Resources.MemoryLimitInBytes != 96<<20 || got.Overhead.MemoryLimitInBytes != 32<<20 {
			t.Errorf("%s cgroup: verbose status has %+v", name, got)
		}
		f.no(f.RemovePod(f.ctx, p.id))
		if _, err := os.Stat(filepath.Dir(parent)); (err == nil) != (name == "lent") {
			t.Errorf("%s cgroup after the pod: %v", name, err)
		}
	}
	f.no(f.removeCgroups(f.CgroupParent() + "/kubepods"))
}

// cgroupOf returns the directory of a container's cgroup for a controller.
func (f *fixture) cgroupOf(id, controller string) string {
	f.t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/" + controller + f.CgroupParent(), "/sys/fs/cgroup" + f.CgroupParent()} {
		for _, depth := range []string{"/*/", "/*/*/"} {
			found, err := filepath.Glob(pattern + depth + "*" + id + "*")
			f.no(err)
			if len(found) == 1 {
				return found[0]
			}
		}
	}
	f.t.Fatalf("container %s has no cgroup", id)
	return ""
}

// cgroupFile reads the first of the files that exists.
func (f *fixture) cgroupFile(dir string, names ...string) string {
	f.t.Helper()
	for _, name := range names {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	f.t.Fatalf("%s has none of %q", dir, names)
	return ""
}

// removeCgroups removes the cgroup and everything below it, in every hierarchy, as the caller that
// made it would.
func (f *fixture) removeCgroups(path string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + path)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup" + path); err == nil {
		roots = append(roots, "/sys/fs/cgroup"+path)
	}
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// The statistics of containers and pods are the same in single requests, in lists and in streams.
func TestStats(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "head -c 1000000 /dev/zero > /file; ping -c 1 127.0.0.1 >/dev/null; sleep 1000 & echo ready; while true; do :; done")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}
	id := f.start(p, config)
	f.eventually("the file is written", func() bool { return text(f.log(p, config)) == "ready\n" })
	streaming, err := node.DialStreaming(f.ctx, f.Socket())
	f.no(err)
	defer func() { _ = streaming.Close(f.ctx) }()
	for how, runtime := range map[string]internalapi.RuntimeService{"list": f.Runtime, "stream": streaming} {
		containers, err := runtime.ListContainerStats(f.ctx, &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id})
		f.no(err)
		pods, err := runtime.ListPodSandboxStats(f.ctx, &runtimeapi.PodSandboxStatsFilter{Id: p.id})
		f.no(err)
		if len(containers) != 1 || len(pods) != 1 {
			t.Fatalf("%s: statistics of %d containers and %d pods, want one of each", how, len(containers), len(pods))
		}
		f.checkContainerStats(how, id, containers[0])
		f.checkPodStats(how, p.id, pods[0])
		f.checkContainerStats(how+" of the pod", id, pods[0].GetLinux().GetContainers()[0])
		metrics, err := runtime.ListPodSandboxMetrics(f.ctx)
		f.no(err)
		if len(metrics) != 1 || metrics[0].PodSandboxId != p.id || len(metrics[0].ContainerMetrics) != 1 {
			t.Errorf("%s: metrics are %v, want the pod's and its container's", how, metrics)
		}
	}
	container, err := f.Runtime.ContainerStats(f.ctx, id)
	f.no(err)
	f.checkContainerStats("single", id, container)
	sandbox, err := f.Runtime.PodSandboxStats(f.ctx, p.id)
	f.no(err)
	f.checkPodStats("single", p.id, sandbox)
}

func (f *fixture) checkContainerStats(how, id string, s *runtimeapi.ContainerStats) {
	f.t.Helper()
	if s.GetAttributes().GetId() != id || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetUsageNanoCores().GetValue() == 0 {
		f.t.Errorf("%s: container %v, cpu %v", how, s.GetAttributes().GetId(), s.GetCpu())
	}
	m := s.GetMemory()
	if m.GetWorkingSetBytes().GetValue() == 0 || m.GetUsageBytes().GetValue() == 0 || m.GetPageFaults().GetValue() == 0 || m.GetAvailableBytes().GetValue() == 0 || m.GetAvailableBytes().GetValue() > 64<<20 {
		f.t.Errorf("%s: memory %v", how, m)
	}
	if s.GetSwap().GetSwapAvailableBytes().GetValue() != 32<<20 || s.GetSwap().GetTimestamp() == 0 {
		f.t.Errorf("%s: swap %v, want 32 MiB available", how, s.GetSwap())
	}
	if w := s.GetWritableLayer(); w.GetUsedBytes().GetValue() < 1_000_000 || w.GetInodesUsed().GetValue() == 0 || w.GetFsId().GetMountpoint() == "" {
		f.t.Errorf("%s: writable layer %v", how, w)
	}
}

func (f *fixture) checkPodStats(how, id string, s *runtimeapi.PodSandboxStats) {
	f.t.Helper()
	linux := s.GetLinux()
	if s.GetAttributes().GetId() != id || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		f.t.Errorf("%s: pod %s, cpu %v, memory %v", how, s.GetAttributes().GetId(), linux.GetCpu(), linux.GetMemory())
	}
	if n := linux.GetNetwork(); n.GetDefaultInterface().GetName() != "eth0" || n.GetDefaultInterface().GetRxBytes() == nil || n.GetTimestamp() == 0 {
		f.t.Errorf("%s: network %v", how, n)
	}
	if got := linux.GetProcess().GetProcessCount().GetValue(); got != 2 {
		f.t.Errorf("%s: %d processes, want 2", how, got)
	}
	if len(linux.GetContainers()) != 1 {
		f.t.Fatalf("%s: pod with statistics of %d containers, want 1", how, len(linux.GetContainers()))
	}
}

func TestStatusAndVersion(t *testing.T) {
	f := start(t)
	version, err := f.Runtime.Version(f.ctx, "")
	f.no(err)
	if version.Version != "0.1.0" || version.RuntimeName == "" || version.RuntimeVersion == "" || version.RuntimeApiVersion != "v1" {
		t.Errorf("version is %v", version)
	}
	status, err := f.Runtime.Status(f.ctx, true)
	f.no(err)
	for _, condition := range status.Status.Conditions {
		if !condition.Status {
			t.Errorf("condition %s is false: %s %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	if len(status.Status.Conditions) < 2 || !status.Features.GetMountOptions() || !status.Features.GetSupplementalGroupsPolicy() {
		t.Errorf("status has %d conditions and the features %v", len(status.Status.Conditions), status.Features)
	}
	if len(status.RuntimeHandlers) == 0 || status.RuntimeHandlers[0].Name != "" || !status.RuntimeHandlers[0].Features.GetRecursiveReadOnlyMounts() {
		t.Errorf("handlers are %v, want the default one first, with recursive read-only mounts", status.RuntimeHandlers)
	}
	var config struct{ SandboxImage string }
	f.no(json.Unmarshal([]byte(status.Info["config"]), &config))
	if !strings.Contains(config.SandboxImage, "pause:") {
		t.Errorf("kubeadm reads the sandbox image %q", config.SandboxImage)
	}
	for _, key := range []string{"cniconfig", "lastCNILoadStatus", "golang", "version"} {
		if info := status.Info[key]; info == "" || !json.Valid([]byte(info)) {
			t.Errorf("info %s is %q, want JSON", key, info)
		}
	}
	driver, err := f.Runtime.RuntimeConfig(f.ctx)
	f.no(err)
	want := runtimeapi.CgroupDriver_CGROUPFS
	if f.CgroupDriver == "systemd" {
		want = runtimeapi.CgroupDriver_SYSTEMD
	}
	if got := driver.GetLinux().GetCgroupDriver(); got != want {
		t.Errorf("cgroup driver is %v, want %v", got, want)
	}
}

// Containers have the resource limits of the configuration.
func TestUlimits(t *testing.T) {
	f := startOn(t, func(o *node.Options) {
		dir := filepath.Join(o.Data, "conf.d")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "ulimits.toml"), []byte("[pods]\nulimits = [\"nofile=321:654\", \"core=0\"]\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	})
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	// The soft limit of open files is not checked here: runc before 1.1.7 lets an exec raise it.
	if got := f.exec(id, "sh", "-c", "ulimit -Hn; ulimit -Hc"); got != "654\n0\n" {
		t.Errorf("limits of an exec are %q", got)
	}
	if got := f.output(p, f.containerConfig(busyboxImage, "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hc")); got != "321\n654\n0\n" {
		t.Errorf("limits of a container are %q", got)
	}
}
