package cgroup

import "time"

// Stats are the counters of a cgroup at one moment. A pointer is nil where
// the host does not count.
type Stats struct {
	// Time is when they were read.
	Time time.Time
	CPU  CPUStats
	// Memory is nil where the memory controller is absent.
	Memory  *MemoryStats
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
	Pressure                                 *Pressure
}

// MemoryStats is memory in bytes.
type MemoryStats struct {
	// Usage is everything charged; WorkingSet is Usage without inactive
	// file pages, as cAdvisor defines it.
	Usage, WorkingSet uint64
	// Limit is 0 where there is none.
	Limit uint64
	// MaxUsage is the high-water mark, 0 where not counted.
	MaxUsage                    uint64
	RSS, Cache, MappedFile      uint64
	KernelUsage                 uint64
	PageFaults, MajorPageFaults uint64
	// SwapUsage and SwapLimit are nil where swap is not accounted.
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
	Major, Minor                                                       uint64
	ReadBytes, WriteBytes, DiscardBytes, ReadOps, WriteOps, DiscardOps uint64
}

// Pressure is a PSI file: shares in percent, totals in microseconds.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one line of a PSI file.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}
