package stats

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// CPU returns the CPU time of s with the rate from [Sampler.Rate].
func CPU(s cgroup.Stats, rate uint64) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp:            s.Time.UnixNano(),
		UsageCoreNanoSeconds: value(s.CPU.Usage),
		UsageNanoCores:       value(rate),
		Psi:                  psi(s.CPU.Pressure),
	}
}

// Memory returns the memory of s, nil if the host does not account memory. Available bytes are set
// only if there is a limit.
func Memory(s cgroup.Stats) *runtimeapi.MemoryUsage {
	m := s.Memory
	if m == nil {
		return nil
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		UsageBytes:      value(m.Usage),
		WorkingSetBytes: value(m.WorkingSet),
		RssBytes:        value(m.RSS),
		PageFaults:      value(m.PageFaults),
		MajorPageFaults: value(m.MajorPageFaults),
		Psi:             psi(m.Pressure),
	}
	if m.Limit > 0 {
		out.AvailableBytes = value(available(m.Limit, m.WorkingSet))
	}
	return out
}

// Swap returns the swap of s, nil if the host does not account swap.
func Swap(s cgroup.Stats) *runtimeapi.SwapUsage {
	if s.Memory == nil || s.Memory.SwapUsage == nil {
		return nil
	}
	used := *s.Memory.SwapUsage
	out := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(used)}
	if limit := s.Memory.SwapLimit; limit != nil && *limit > 0 {
		out.SwapAvailableBytes = value(available(*limit, used))
	}
	return out
}

// IO returns the I/O pressure of s, nil if the host has none.
func IO(s cgroup.Stats) *runtimeapi.IoUsage {
	if s.IOPressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IOPressure)}
}

// ProcessCount returns the number of processes at the time of s.
func ProcessCount(s cgroup.Stats, pids []int) *runtimeapi.ProcessUsage {
	return &runtimeapi.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: value(uint64(len(pids)))}
}

// available returns the unused part of limit. A cgroup can be above its limit for a while.
func available(limit, used uint64) uint64 {
	if used > limit {
		return 0
	}
	return limit - used
}

// psi converts the kernel's microseconds to the CRI's nanoseconds.
func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroup.PressureLine) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: l.Total * 1000, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// defaultInterface is the name of the interface that CNI gives a pod.
const defaultInterface = "eth0"

// Network returns the counters of a pod's interfaces. It returns nil if the default interface is
// missing, as during set-up and tear-down: the kubelet (1.36) dereferences it without a check.
func Network(at time.Time, counters []network.InterfaceStats) *runtimeapi.NetworkUsage {
	out := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano()}
	for _, c := range counters {
		usage := &runtimeapi.NetworkInterfaceUsage{
			Name:    c.Name,
			RxBytes: value(c.RxBytes), RxErrors: value(c.RxErrors),
			TxBytes: value(c.TxBytes), TxErrors: value(c.TxErrors),
		}
		if c.Name == defaultInterface {
			out.DefaultInterface = usage
		} else {
			out.Interfaces = append(out.Interfaces, usage)
		}
	}
	if out.DefaultInterface == nil {
		return nil
	}
	return out
}
