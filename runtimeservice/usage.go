package runtimeservice

import (
	"context"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

const (
	// rateWindow is the shortest time over which a rate of CPU use means
	// anything.
	rateWindow = time.Second
	// layerAge is how long a measured writable layer is good for; one that is
	// slow to measure is good for layerPatience times as long as that took.
	layerAge      = 10 * time.Second
	layerPatience = 20
)

// usage remembers the last readings of one container or pod, for what one
// reading does not tell and what is dear to read. Its zero value is ready.
type usage struct {
	mu        sync.Mutex // guards the rest; not held while reading
	cpu       cpuSample
	layer     layerSample
	measuring bool // somebody is measuring the layer
}

// cpuSample is a reading of CPU time, in nanoseconds, and the rate up to it,
// in nanoseconds per second.
type cpuSample struct {
	at          time.Time
	total, rate uint64
}

// layerSample is a measured writable layer.
type layerSample struct {
	at    time.Time
	took  time.Duration
	usage overlay.Usage
}

// rate takes in a reading and returns the CPU use since the one before, or
// since the object's start for the first. Readings within rateWindow of the
// one before get the rate that was known then.
func (u *usage) rate(at time.Time, total uint64, start time.Time) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	last := u.cpu
	if last.at.IsZero() || total < last.total {
		last = cpuSample{at: start}
	} else if at.Sub(last.at) < rateWindow {
		return last.rate
	}
	elapsed := at.Sub(last.at)
	if start.IsZero() || elapsed <= 0 {
		return 0
	}
	rate := uint64(float64(total-last.total) / elapsed.Seconds())
	u.cpu = cpuSample{at: at, total: total, rate: rate}
	return rate
}

// claimLayer returns the last measurement and whether the caller has to make a
// new one, which it then reports by setLayer.
func (u *usage) claimLayer(now time.Time) (layerSample, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	known := !u.layer.at.IsZero()
	if known && (u.measuring || now.Sub(u.layer.at) < max(layerAge, layerPatience*u.layer.took)) {
		return u.layer, false
	}
	u.measuring = true
	return layerSample{}, true
}

func (u *usage) setLayer(sample layerSample, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.measuring = false
	if err == nil {
		u.layer = sample
	}
}

// layerUsage is the size of the container's writable layer, of some seconds ago.
func (s *Service) layerUsage(ctx context.Context, c *Container) (layerSample, error) {
	begin := time.Now()
	sample, measure := c.usage.claimLayer(begin)
	if !measure {
		return sample, nil
	}
	size, err := s.layers.Usage(ctx, c.ID)
	sample = layerSample{at: begin, took: time.Since(begin), usage: size}
	c.usage.setLayer(sample, err)
	if err != nil {
		return layerSample{}, fmt.Errorf("measure writable layer: %w", err)
	}
	return sample, nil
}

func uint64Value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

func cpuUsage(s cgroup.Stats, nanoCores uint64) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp:            s.Time.UnixNano(),
		UsageCoreNanoSeconds: uint64Value(s.CPU.Usage),
		UsageNanoCores:       uint64Value(nanoCores),
		Psi:                  psi(s.CPU.Pressure),
	}
}

// memoryUsage is nil where memory is not counted. Without a limit nothing can
// be said of what is available.
func memoryUsage(s cgroup.Stats) *runtimeapi.MemoryUsage {
	m := s.Memory
	if m == nil {
		return nil
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		UsageBytes:      uint64Value(m.Usage),
		WorkingSetBytes: uint64Value(m.WorkingSet),
		RssBytes:        uint64Value(m.RSS),
		PageFaults:      uint64Value(m.PageFaults),
		MajorPageFaults: uint64Value(m.MajorPageFaults),
		Psi:             psi(m.Pressure),
	}
	if m.Limit > 0 {
		out.AvailableBytes = uint64Value(left(m.Limit, m.WorkingSet))
	}
	return out
}

func swapUsage(s cgroup.Stats) *runtimeapi.SwapUsage {
	if s.Memory == nil || s.Memory.SwapUsage == nil {
		return nil
	}
	used := *s.Memory.SwapUsage
	out := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: uint64Value(used)}
	if limit := s.Memory.SwapLimit; limit != nil && *limit > 0 {
		out.SwapAvailableBytes = uint64Value(left(*limit, used))
	}
	return out
}

func ioUsage(s cgroup.Stats) *runtimeapi.IoUsage {
	if s.IOPressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IOPressure)}
}

// left is what of limit is not used; a cgroup can be above its limit for a while.
func left(limit, used uint64) uint64 {
	if used > limit {
		return 0
	}
	return limit - used
}

// psi turns the kernel's microseconds into the CRI's nanoseconds.
func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroup.PressureLine) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: l.Total * 1000, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Full: line(p.Full), Some: line(p.Some)}
}

// defaultInterface is the interface that CNI gives a pod.
const defaultInterface = "eth0"

// networkUsage is nil while the pod does not have its interface, or no longer: the
// kubelet (1.36) takes for granted that a usage has a default interface.
func networkUsage(at time.Time, counters []network.InterfaceStats) *runtimeapi.NetworkUsage {
	out := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano()}
	for _, c := range counters {
		usage := &runtimeapi.NetworkInterfaceUsage{
			Name:    c.Name,
			RxBytes: uint64Value(c.RxBytes), RxErrors: uint64Value(c.RxErrors),
			TxBytes: uint64Value(c.TxBytes), TxErrors: uint64Value(c.TxErrors),
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
