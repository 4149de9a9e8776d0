package stats

import (
	"github.com/micarun/mica/runtimeservice/cgroup"
)

func memoryFamilies() []family {
	memory := func(f func(*cgroup.MemoryStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil || r.Stats.Memory == nil {
				return nil
			}
			return one(f(r.Stats.Memory))
		}
	}
	return []family{
		gauge("container_memory_usage_bytes", "All memory charged to the container.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Usage })),
		gauge("container_memory_working_set_bytes", "Memory in use, without inactive file pages.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.WorkingSet })),
		gauge("container_memory_max_usage_bytes", "Highest memory usage so far, in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.MaxUsage })),
		gauge("container_memory_rss", "Anonymous memory in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.RSS })),
		gauge("container_memory_cache", "Page cache in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Cache })),
		gauge("container_memory_mapped_file", "Files mapped into memory, in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.MappedFile })),
		gauge("container_memory_total_active_file_bytes", "Active file pages in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.ActiveFile })),
		gauge("container_memory_total_inactive_file_bytes", "Inactive file pages in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.InactiveFile })),
		gauge("container_memory_file_dirty_bytes", "File pages not written to disk yet, in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Dirty })),
		gauge("container_memory_file_writeback_bytes", "File pages being written to disk, in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Writeback })),
		gauge("container_memory_kernel_usage", "Kernel memory in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.KernelUsage })),
		gauge("container_memory_swap", "Swap in use, in bytes.", swapSamples),
		counter("container_memory_failcnt", "Number of times that the memory limit was hit.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Failcnt })),
		counter("container_memory_failures_total", "Page faults, of the container alone and including the cgroups below it.",
			faultSamples, "failure_type", "scope"),
		counter("container_oom_events_total", "Processes killed by the kernel's OOM killer.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.OOMKills })),
	}
}

func swapSamples(r *Reading) []sample {
	if r.Stats == nil || r.Stats.Memory == nil || r.Stats.Memory.SwapUsage == nil {
		return nil
	}
	return one(*r.Stats.Memory.SwapUsage)
}

// faultSamples returns page faults. For a pod the kernel counts only the sum of its containers.
func faultSamples(r *Reading) []sample {
	if r.Stats == nil || r.Stats.Memory == nil {
		return nil
	}
	m := r.Stats.Memory
	scopes := []string{"hierarchy"}
	if r.Leaf {
		scopes = []string{"container", "hierarchy"}
	}
	var out []sample
	for _, scope := range scopes {
		out = append(out,
			sample{value: m.PageFaults, labels: []string{"pgfault", scope}},
			sample{value: m.MajorPageFaults, labels: []string{"pgmajfault", scope}})
	}
	return out
}

func hugetlbFamilies() []family {
	huge := func(f func(cgroup.HugetlbStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil {
				return nil
			}
			var out []sample
			for _, h := range r.Stats.Hugetlb {
				out = append(out, sample{value: f(h), labels: []string{h.PageSize}})
			}
			return out
		}
	}
	return []family{
		gauge("container_hugetlb_usage_bytes", "Huge pages in use, in bytes.",
			huge(func(h cgroup.HugetlbStats) uint64 { return h.Usage }), "pagesize"),
		gauge("container_hugetlb_max_usage_bytes", "Highest usage of huge pages so far, in bytes.",
			huge(func(h cgroup.HugetlbStats) uint64 { return h.MaxUsage }), "pagesize"),
	}
}
