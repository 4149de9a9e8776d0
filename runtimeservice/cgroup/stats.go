package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Stats are the counters of a cgroup at one time. A pointer is nil if the host does not provide the
// counter.
type Stats struct {
	// Time is when the counters were read.
	Time time.Time
	CPU  CPUStats
	// Memory is nil if the memory controller is absent.
	Memory *MemoryStats
	// Pids is nil if the pids controller is absent.
	Pids    *PidsStats
	Hugetlb []HugetlbStats
	IO      []IOStats
	// IOPressure is set only on cgroup v2 with PSI, like Pressure in CPU and Memory.
	IOPressure *Pressure
}

// CPUStats is processor time. Times are in nanoseconds.
type CPUStats struct {
	Usage, User, System uint64
	// Periods, ThrottledPeriods and ThrottledTime belong to the CFS quota.
	Periods, ThrottledPeriods, ThrottledTime uint64
	// BurstPeriods and BurstTime belong to the quota's bursts. They are 0 on kernels without bursts
	// (before Linux 5.14).
	BurstPeriods, BurstTime uint64
	Pressure                *Pressure
}

// MemoryStats is memory in bytes, including the cgroups below.
type MemoryStats struct {
	// Usage is all memory charged. WorkingSet is Usage without inactive file pages, as cAdvisor
	// defines it.
	Usage, WorkingSet uint64
	// Limit is 0 if there is none.
	Limit uint64
	// MaxUsage is the high-water mark, 0 if the kernel does not count it.
	MaxUsage                    uint64
	RSS, Cache, MappedFile      uint64
	ActiveFile, InactiveFile    uint64
	Dirty, Writeback            uint64
	KernelUsage                 uint64
	PageFaults, MajorPageFaults uint64
	// SwapUsage and SwapLimit count swap alone; a SwapLimit of 0 means none. Both are nil if swap
	// is not accounted.
	SwapUsage, SwapLimit *uint64
	// Failcnt counts how often the limit was hit.
	Failcnt uint64
	// OOMKills counts processes killed by the OOM killer.
	OOMKills uint64
	Pressure *Pressure
}

// PidsStats counts tasks. Limit is 0 if there is none.
type PidsStats struct{ Current, Limit uint64 }

// HugetlbStats is the usage of one page size ("2MB"), in bytes.
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

// Pressure is the content of a PSI file: averages in percent, totals in microseconds.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one line of a PSI file.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Stats reads the counters of a cgroup and returns ErrNotFound if it does not exist. It opens about
// ten small files and allocates little, so that hundreds of cgroups can be read per second.
func (m *Manager) Stats(path string) (Stats, error) { return m.read(path, m.statsV1, m.statsV2) }

// Usage is Stats without the counters that only metrics need, at half the cost. It sets CPU.Usage,
// the pressures, and of Memory: Usage, WorkingSet, Limit, the fields from memory.stat, SwapUsage and
// SwapLimit. On v2 it also sets the other CPU times, which are in the same file.
func (m *Manager) Usage(path string) (Stats, error) { return m.read(path, m.usageV1, m.usageV2) }

func (m *Manager) read(path string, v1, v2 func(r *reader, path string, s *Stats)) (Stats, error) {
	if err := m.findable(path); err != nil {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", path, err)
	}
	r := &reader{}
	s := Stats{Time: time.Now()}
	if m.mode.V2 {
		v2(r, path, &s)
	} else {
		v1(r, path, &s)
	}
	if r.err != nil {
		return Stats{}, fmt.Errorf("read cgroup %s: %w", path, r.err)
	}
	return s, nil
}

// findable returns ErrNotFound if the cgroup exists in none of the hierarchies that Stats reads.
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

// MemoryDir returns the absolute directory of a cgroup's memory controller, "" if there is none.
func (m *Manager) MemoryDir(path string) string { return m.mode.dir("memory", path) }

// workingSet is usage without inactive file pages.
func workingSet(usage, inactiveFile uint64) uint64 {
	if inactiveFile > usage {
		return 0
	}
	return usage - inactiveFile
}
