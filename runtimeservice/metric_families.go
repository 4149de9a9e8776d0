package runtimeservice

import (
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

// The metrics bear the names, label keys and types that cAdvisor gives them, so
// that dashboards written for the kubelet's cAdvisor go on to work. They are
// those that it exposes on today's kernels: CRI clients expect samples of every
// metric that is described. Values are whole numbers, since the CRI carries no
// others: seconds are cut. Where the host does not count something (huge pages,
// devices, pressure, swap), its metrics have no samples.

// baseLabels are the label keys of every metric, before its own:
//
//	id         the cgroup
//	name       the container's or, for its network, the pod's ID
//	image      the container's image
//	container  the container's name; "" for the whole pod, "POD" for its network
//	pod, namespace
func baseLabels() []string { return []string{"id", "name", "image", "container", "pod", "namespace"} }

// family is one metric: what it is, and how its samples come from a reading.
type family struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // keys beside baseLabels
	samples    func(r *reading) []sample
}

// sample is one value of a family.
type sample struct {
	value  uint64
	labels []string  // values of the family's own keys
	at     time.Time // zero for just now
}

// reading is what was read of one container or pod. Parts that do not apply
// are nil.
type reading struct {
	stats            *cgroup.Stats
	limits           *runtimeapi.LinuxContainerResources
	created, started time.Time
	seen             time.Time
	leaf             bool // a container, whose cgroup has no others below it
	disk             *diskReading
	processes        *processReading
	interfaces       []network.InterfaceStats
}

// families are all metrics, in the order of their descriptors.
func families() []family {
	return slices.Concat(lifeFamilies(), cpuFamilies(), memoryFamilies(), hugetlbFamilies(), limitFamilies(),
		pressureFamilies(), diskFamilies(), processFamilies(), networkFamilies())
}

func (f family) descriptor() *runtimeapi.MetricDescriptor {
	return &runtimeapi.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: append(baseLabels(), f.labels...)}
}

// render turns a reading into metrics with the given values of baseLabels.
func (r *reading) render(families []family, base []string) []*runtimeapi.Metric {
	var out []*runtimeapi.Metric
	for _, f := range families {
		for _, v := range f.samples(r) {
			out = append(out, &runtimeapi.Metric{
				Name: f.name, MetricType: f.kind, Timestamp: unixNano(v.at),
				LabelValues: slices.Concat(base, v.labels), Value: uint64Value(v.value),
			})
		}
	}
	return out
}

func counter(name, help string, samples func(*reading) []sample, labels ...string) family {
	return family{name: name, help: help, kind: runtimeapi.MetricType_COUNTER, labels: labels, samples: samples}
}

func gauge(name, help string, samples func(*reading) []sample, labels ...string) family {
	return family{name: name, help: help, kind: runtimeapi.MetricType_GAUGE, labels: labels, samples: samples}
}

func one(value uint64, labels ...string) []sample { return []sample{{value: value, labels: labels}} }

func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }

func lifeFamilies() []family {
	moment := func(t func(*reading) time.Time) func(*reading) []sample {
		return func(r *reading) []sample {
			if at := t(r); !at.IsZero() {
				return one(uint64(at.Unix()))
			}
			return nil
		}
	}
	return []family{
		gauge("container_last_seen", "Unix time at which the container was read, in seconds.",
			moment(func(r *reading) time.Time { return r.seen })),
		gauge("container_creation_time_seconds", "Unix time at which the container was created.",
			moment(func(r *reading) time.Time { return r.created })),
		gauge("container_start_time_seconds", "Unix time at which the container was started, or created if it was not.",
			moment(func(r *reading) time.Time { return either(r.started, r.created) })),
	}
}

func cpuFamilies() []family {
	cpu := func(f func(cgroup.CPUStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil {
				return nil
			}
			return one(f(r.stats.CPU))
		}
	}
	// Who has no quota is never throttled, and has no such metrics.
	quota := func(f func(cgroup.CPUStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil || r.limits.GetCpuQuota() <= 0 {
				return nil
			}
			return one(f(r.stats.CPU))
		}
	}
	return []family{
		counter("container_cpu_usage_seconds_total", "CPU time used, in seconds.", func(r *reading) []sample {
			if r.stats == nil {
				return nil
			}
			return one(seconds(r.stats.CPU.Usage), "total")
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
		counter("container_cpu_cfs_burst_periods_total", "Periods in which more than the CPU quota was used, from what earlier ones had saved.",
			quota(func(c cgroup.CPUStats) uint64 { return c.BurstPeriods })),
		counter("container_cpu_cfs_burst_seconds_total", "CPU time used above the quota, in seconds.",
			quota(func(c cgroup.CPUStats) uint64 { return seconds(c.BurstTime) })),
	}
}

func memoryFamilies() []family {
	memory := func(f func(*cgroup.MemoryStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil || r.stats.Memory == nil {
				return nil
			}
			return one(f(r.stats.Memory))
		}
	}
	return []family{
		gauge("container_memory_usage_bytes", "Memory charged to the container, all of it.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Usage })),
		gauge("container_memory_working_set_bytes", "Memory in use without file pages that were not used lately.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.WorkingSet })),
		gauge("container_memory_max_usage_bytes", "Most memory that was ever charged.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.MaxUsage })),
		gauge("container_memory_rss", "Anonymous memory in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.RSS })),
		gauge("container_memory_cache", "Page cache in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Cache })),
		gauge("container_memory_mapped_file", "Files mapped into memory, in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.MappedFile })),
		gauge("container_memory_total_active_file_bytes", "File pages that were used lately.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.ActiveFile })),
		gauge("container_memory_total_inactive_file_bytes", "File pages that were not used lately.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.InactiveFile })),
		gauge("container_memory_file_dirty_bytes", "File pages that are still to be written to disk.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Dirty })),
		gauge("container_memory_file_writeback_bytes", "File pages that are being written to disk.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Writeback })),
		gauge("container_memory_kernel_usage", "Kernel memory in bytes.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.KernelUsage })),
		gauge("container_memory_swap", "Swap in use, in bytes.", swapSamples),
		counter("container_memory_failcnt", "Times that the memory limit was hit.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.Failcnt })),
		counter("container_memory_failures_total", "Page faults, of the container alone and with what is below it.",
			faultSamples, "failure_type", "scope"),
		counter("container_oom_events_total", "Processes that the kernel killed for lack of memory.",
			memory(func(m *cgroup.MemoryStats) uint64 { return m.OOMKills })),
	}
}

func swapSamples(r *reading) []sample {
	if r.stats == nil || r.stats.Memory == nil || r.stats.Memory.SwapUsage == nil {
		return nil
	}
	return one(*r.stats.Memory.SwapUsage)
}

// faultSamples are page faults. The kernel adds up those of a pod's containers
// and counts none of the pod alone.
func faultSamples(r *reading) []sample {
	if r.stats == nil || r.stats.Memory == nil {
		return nil
	}
	m := r.stats.Memory
	scopes := []string{"hierarchy"}
	if r.leaf {
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
	huge := func(f func(cgroup.HugetlbStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil {
				return nil
			}
			var out []sample
			for _, h := range r.stats.Hugetlb {
				out = append(out, sample{value: f(h), labels: []string{h.PageSize}})
			}
			return out
		}
	}
	return []family{
		gauge("container_hugetlb_usage_bytes", "Huge pages in use, in bytes.",
			huge(func(h cgroup.HugetlbStats) uint64 { return h.Usage }), "pagesize"),
		gauge("container_hugetlb_max_usage_bytes", "Most huge pages that were ever in use, in bytes.",
			huge(func(h cgroup.HugetlbStats) uint64 { return h.MaxUsage }), "pagesize"),
	}
}

// limitFamilies are the limits that were asked for; 0 means none.
func limitFamilies() []family {
	limit := func(f func(*runtimeapi.LinuxContainerResources) int64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.limits == nil {
				return nil
			}
			return one(uint64(max(f(r.limits), 0)))
		}
	}
	return []family{
		gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds.",
			limit(func(l *runtimeapi.LinuxContainerResources) int64 { return either(l.GetCpuPeriod(), defaultCPUPeriod) })),
		gauge("container_spec_cpu_quota", "CPU time that may be used in a period, in microseconds.", func(r *reading) []sample {
			if r.limits.GetCpuQuota() <= 0 {
				return nil
			}
			return one(uint64(r.limits.GetCpuQuota()))
		}),
		gauge("container_spec_cpu_shares", "Weight of the container in the competition for CPUs.",
			limit(func(l *runtimeapi.LinuxContainerResources) int64 { return either(l.GetCpuShares(), defaultCPUShares) })),
		gauge("container_spec_memory_limit_bytes", "Limit of memory.",
			limit((*runtimeapi.LinuxContainerResources).GetMemoryLimitInBytes)),
		gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together.",
			limit((*runtimeapi.LinuxContainerResources).GetMemorySwapLimitInBytes)),
		gauge("container_spec_memory_reservation_limit_bytes", "Soft limit of memory, which the CRI does not have.",
			limit(func(*runtimeapi.LinuxContainerResources) int64 { return 0 })),
	}
}

// defaultCPUShares is the kernel's weight of a cgroup (v1's scale).
const defaultCPUShares = int64(1024)

func pressureFamilies() []family {
	stall := func(of func(*cgroup.Stats) *cgroup.Pressure, line func(*cgroup.Pressure) cgroup.PressureLine) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.stats == nil || of(r.stats) == nil {
				return nil
			}
			return one(line(of(r.stats)).Total / uint64(time.Second/time.Microsecond))
		}
	}
	some := func(p *cgroup.Pressure) cgroup.PressureLine { return p.Some }
	full := func(p *cgroup.Pressure) cgroup.PressureLine { return p.Full }
	cpu := func(s *cgroup.Stats) *cgroup.Pressure { return s.CPU.Pressure }
	io := func(s *cgroup.Stats) *cgroup.Pressure { return s.IOPressure }
	memory := func(s *cgroup.Stats) *cgroup.Pressure {
		if s.Memory == nil {
			return nil
		}
		return s.Memory.Pressure
	}
	return []family{
		counter("container_pressure_cpu_stalled_seconds_total", "Time in which every task waited for a CPU, in seconds.", stall(cpu, full)),
		counter("container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU, in seconds.", stall(cpu, some)),
		counter("container_pressure_memory_stalled_seconds_total", "Time in which every task waited for memory, in seconds.", stall(memory, full)),
		counter("container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory, in seconds.", stall(memory, some)),
		counter("container_pressure_io_stalled_seconds_total", "Time in which every task waited for a device, in seconds.", stall(io, full)),
		counter("container_pressure_io_waiting_seconds_total", "Time in which some task waited for a device, in seconds.", stall(io, some)),
	}
}

func networkFamilies() []family {
	per := func(f func(network.InterfaceStats) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			var out []sample
			for _, i := range r.interfaces {
				out = append(out, sample{value: f(i), labels: []string{i.Name}})
			}
			return out
		}
	}
	const key = "interface"
	return []family{
		counter("container_network_receive_bytes_total", "Bytes received.",
			per(func(i network.InterfaceStats) uint64 { return i.RxBytes }), key),
		counter("container_network_receive_packets_total", "Packets received.",
			per(func(i network.InterfaceStats) uint64 { return i.RxPackets }), key),
		counter("container_network_receive_packets_dropped_total", "Packets dropped on reception.",
			per(func(i network.InterfaceStats) uint64 { return i.RxDropped }), key),
		counter("container_network_receive_errors_total", "Errors on reception.",
			per(func(i network.InterfaceStats) uint64 { return i.RxErrors }), key),
		counter("container_network_transmit_bytes_total", "Bytes sent.",
			per(func(i network.InterfaceStats) uint64 { return i.TxBytes }), key),
		counter("container_network_transmit_packets_total", "Packets sent.",
			per(func(i network.InterfaceStats) uint64 { return i.TxPackets }), key),
		counter("container_network_transmit_packets_dropped_total", "Packets dropped on sending.",
			per(func(i network.InterfaceStats) uint64 { return i.TxDropped }), key),
		counter("container_network_transmit_errors_total", "Errors on sending.",
			per(func(i network.InterfaceStats) uint64 { return i.TxErrors }), key),
	}
}
