package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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

// As kubelets resize pods: the score depends on what a container asks for.
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
		t.Errorf("a score that is none: %v", err)
	}
}

func TestOOMKilled(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	for range 5 {
		config := f.containerConfig(busyboxImage, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1")
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
		got := f.await(f.start(p, config))
		if got.Reason != "OOMKilled" || got.ExitCode != 137 {
			t.Errorf("reason %q and code %d, want OOMKilled and 137", got.Reason, got.ExitCode)
		}
	}
}

func TestStats(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "head -c 1000000 /dev/zero > /file; while true; do :; done"))
	f.eventually("container statistics are complete", func() bool {
		s, err := f.Runtime.ContainerStats(f.ctx, id)
		f.no(err)
		return s.GetAttributes().GetId() == id && s.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 &&
			s.GetMemory().GetWorkingSetBytes().GetValue() > 0 &&
			s.GetWritableLayer().GetUsedBytes().GetValue() >= 1_000_000 && s.GetWritableLayer().GetInodesUsed().GetValue() > 0
	})
	pods, err := f.Runtime.ListPodSandboxStats(f.ctx, &runtimeapi.PodSandboxStatsFilter{Id: p.id})
	f.no(err)
	if len(pods) != 1 {
		t.Fatalf("statistics of %d pods, want 1", len(pods))
	}
	linux := pods[0].GetLinux()
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetNetwork().GetDefaultInterface().GetName() == "" ||
		linux.GetProcess().GetProcessCount().GetValue() == 0 || len(linux.GetContainers()) != 1 {
		t.Errorf("pod statistics are %v, want cpu, network, processes and one container", linux)
	}
	containers, err := f.Runtime.ListContainerStats(f.ctx, &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id})
	f.no(err)
	if len(containers) != 1 {
		t.Errorf("statistics of %d containers, want 1", len(containers))
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
	if len(status.Status.Conditions) < 2 || len(status.RuntimeHandlers) == 0 || len(status.Info) == 0 {
		t.Errorf("status has %d conditions, %d handlers, %d infos", len(status.Status.Conditions), len(status.RuntimeHandlers), len(status.Info))
	}
}
