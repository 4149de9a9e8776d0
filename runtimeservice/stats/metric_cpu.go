package stats

import (
	"github.com/micarun/mica/runtimeservice/cgroup"
)

func cpuFamilies() []family {
	cpu := func(f func(cgroup.CPUStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil {
				return nil
			}
			return one(f(r.Stats.CPU))
		}
	}
	// A cgroup without quota is never throttled and has no such metrics.
	quota := func(f func(cgroup.CPUStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil || r.Limits.GetCpuQuota() <= 0 {
				return nil
			}
			return one(f(r.Stats.CPU))
		}
	}
	return []family{
		counter("container_cpu_usage_seconds_total", "CPU time used, in seconds.", func(r *Reading) []sample {
			if r.Stats == nil {
				return nil
			}
			return one(seconds(r.Stats.CPU.Usage), "total")
		}, "cpu"),
		counter("container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.",
			cpu(func(c cgroup.CPUStats) uint64 { return seconds(c.User) })),
		counter("container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.",
			cpu(func(c cgroup.CPUStats) uint64 { return seconds(c.System) })),
		counter("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.",
			quota(func(c cgroup.CPUStats) uint64 { return c.Periods })),
		counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.",
			quota(func(c cgroup.CPUStats) uint64 { return c.ThrottledPeriods })),
		counter("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for the next period of the CPU quota, in seconds.",
			quota(func(c cgroup.CPUStats) uint64 { return seconds(c.ThrottledTime) })),
		counter("container_cpu_cfs_burst_periods_total", "Periods in which more than the CPU quota was used, by a burst.",
			quota(func(c cgroup.CPUStats) uint64 { return c.BurstPeriods })),
		counter("container_cpu_cfs_burst_seconds_total", "CPU time used above the quota, in seconds.",
			quota(func(c cgroup.CPUStats) uint64 { return seconds(c.BurstTime) })),
	}
}
