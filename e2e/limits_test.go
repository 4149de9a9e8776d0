package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Verbose status shows the limits in force, also after a restart of the daemon.
func TestInspectShowsUpdatedLimits(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500}
	id := f.start(p, config)
	f.no(f.Runtime.UpdateContainerResources(f.ctx, id, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 20_000, CpuPeriod: 100_000, MemoryLimitInBytes: 32 << 20, OomScoreAdj: 600},
	}))
	_, err := f.Runtime.UpdatePodSandboxResources(f.ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	})
	f.no(err)
	for _, when := range []string{"after the update", "after a restart"} {
		spec := f.inspect(id).RuntimeSpec
		text, err := json.Marshal([]any{spec.Linux.Resources, spec.Process.OOMScoreAdj, f.inspectPod(p).RuntimeSpec.Linux.Resources})
		f.no(err)
		for _, want := range []string{`"quota":20000`, `"shares":512`, `"limit":33554432`, `,600,`, `"limit":100663296`} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: no %s in %s", when, want, text)
			}
		}
		f.no(f.Kill())
		_, err = f.StartDaemon(f.ctx)
		f.no(err)
	}
}
