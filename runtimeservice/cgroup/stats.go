package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Stats are the counters of a cgroup at one moment. A pointer is nil where
// the host does not count.
type Stats struct {
	// Time is when they were read.
	Time time.Time
	CPU  CPUStats
	// Memory is nil where the memory controller is absent.
	Memory *MemoryStats
	// Pids is nil where the pids controller is absent.
	Pids    *PidsStats
	Hugetlb []HugetlbStats
	IO      []IOStats
	// IOPressure is there on cgroup v2 with PSI only, like those in CPU and Memory.
	IOPressure *Pressure
}

// CPUStats is processor time. Times are in nanoseconds.
type CPUStats struct {
	Usage, User, System uint64
	// Periods, ThrottledPeriods and ThrottledTime tell of the CFS quota.
	Periods, ThrottledPeriods, ThrottledTime uint64
	// BurstPeriods and BurstTime tell of the quota's bursts; 0 on kernels
	// without them (before Linux 5.14).
	BurstPeriods, BurstTime uint64
	Pressure                *Pressure
}

// MemoryStats is memory in bytes, of the cgroup and those below it.
type MemoryStats struct {
	// Usage is everything charged; WorkingSet is Usage without inactive
	// file pages, as cAdvisor defines it.
	Usage, WorkingSet uint64
	// Limit is 0 where there is none.
	Limit uint64
	// MaxUsage is the high-water mark, 0 where not counted.
	MaxUsage                    uint64
	RSS, Cache, MappedFile      uint64
	ActiveFile, InactiveFile    uint64
	Dirty, Writeback            uint64
	KernelUsage                 uint64
	PageFaults, MajorPageFaults uint64
	// SwapUsage and SwapLimit (of swap alone; 0 for none) are nil where swap
	// is not accounted.
	SwapUsage, SwapLimit *uint64
	// Failcnt counts how often the limit was hit.
	Failcnt uint64
	// OOMKills counts processes that the OOM killer took.
	OOMKills uint64
	Pressure *Pressure
}

// PidsStats counts tasks. Limit is 0 where there is none.
type PidsStats struct{ Current, Limit uint64 }

// HugetlbStats is the use of one page size ("2MB"), in bytes.
type HugetlbStats struct {
	PageSize                 string
	Usage, MaxUsage, Failcnt uint64
}

// IOStats are the counters of one block device.
type IOStats struct {
	Major, Minor                        uint64
	ReadBytes, WriteBytes, DiscardBytes uint64
	ReadOps, WriteOps, DiscardOps       uint64
}

// Pressure is a PSI file: shares in percent, totals in microseconds.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one line of a PSI file.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Stats reads the counters of a cgroup; ErrNotFound where it does not exist.
// It opens some ten small files and allocates little, so that hundreds of
// cgroups can be read in a second.
func (m *Manager) Stats(path string) (Stats, error) {
	if err := m.findable(path); err != nil {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", path, err)
	}
	r := &reader{}
	s := Stats{Time: time.Now()}
	if m.mode.V2 {
		m.statsV2(r, path, &s)
	} else {
		m.statsV1(r, path, &s)
	}
	if r.err != nil {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", path, r.err)
	}
	return s, nil
}

// findable is ErrNotFound where the cgroup is in none of the hierarchies that
// are read.
func (m *Manager) findable(path string) error {
	for _, controller := range []string{"memory", "cpuacct", "cpu", "pids"} {
		if dir := m.mode.dir(controller, path); dir != "" {
			if _, err := os.Stat(dir); err == nil {
				return nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return errdefs.ErrNotFound
}

// MemoryDir returns the absolute directory with a cgroup's memory controller,
// "" where there is none.
func (m *Manager) MemoryDir(path string) string { return m.mode.dir("memory", path) }

// OOMKills returns how many processes the kernel's OOM killer has taken from
// the cgroup at the absolute directory dir (of MemoryDir), on v2 also from
// those below. A cgroup that is gone is ErrNotFound.
func (m *Manager) OOMKills(dir string) (uint64, error) {
	r := &reader{}
	if dir == "" || !r.open(dir) {
		return 0, fmt.Errorf("read OOM kills of %q: %w", dir, errdefs.ErrNotFound)
	}
	kills := uint64(0)
	file := "memory.oom_control" // oom_kill is there since Linux 4.13
	if m.mode.V2 {
		file = "memory.events"
	}
	found := r.keyed(file, func(key []byte, v uint64) {
		if string(key) == "oom_kill" {
			kills = v
		}
	})
	switch {
	case r.err != nil:
		return 0, fmt.Errorf("read OOM kills of %s: %w", dir, r.err)
	case !found:
		return 0, fmt.Errorf("read OOM kills of %s: %w", dir, errdefs.ErrNotFound)
	}
	return kills, nil
}

// workingSet is usage without inactive file pages.
func workingSet(usage, inactiveFile uint64) uint64 {
	if inactiveFile > usage {
		return 0
	}
	return usage - inactiveFile
}
