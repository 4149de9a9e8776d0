package stats

import (
	"cmp"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limitFamilies returns the metrics of requested limits; 0 means none.
func limitFamilies() []family {
	limit := func(f func(*runtimeapi.LinuxContainerResources) int64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Limits == nil {
				return nil
			}
			return one(uint64(max(f(r.Limits), 0)))
		}
	}
	return []family{
		gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds.",
			limit(func(l *runtimeapi.LinuxContainerResources) int64 { return cmp.Or(l.GetCpuPeriod(), defaultCPUPeriod) })),
		gauge("container_spec_cpu_quota", "CPU time that may be used in a period, in microseconds.", func(r *Reading) []sample {
			if r.Limits.GetCpuQuota() <= 0 {
				return nil
			}
			return one(uint64(r.Limits.GetCpuQuota()))
		}),
		gauge("container_spec_cpu_shares", "Weight of the container in the competition for CPUs.",
			limit(func(l *runtimeapi.LinuxContainerResources) int64 { return cmp.Or(l.GetCpuShares(), defaultCPUShares) })),
		gauge("container_spec_memory_limit_bytes", "Limit of memory.",
			limit((*runtimeapi.LinuxContainerResources).GetMemoryLimitInBytes)),
		gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together.",
			limit((*runtimeapi.LinuxContainerResources).GetMemorySwapLimitInBytes)),
		gauge("container_spec_memory_reservation_limit_bytes", "Soft limit of memory, which the CRI does not have.",
			limit(func(*runtimeapi.LinuxContainerResources) int64 { return 0 })),
	}
}

// The kernel's defaults.
const (
	defaultCPUPeriod = int64(100_000) // of the CFS quota, in microseconds
	defaultCPUShares = int64(1024)    // on the scale of cgroup v1
)
