package cgroup

import (
	"bytes"
	"fmt"
)

// userHZ is the unit of cpuacct.stat in ticks per second. It is 100 on every architecture that Go
// supports (times(2)).
const userHZ = 100

func (m *Manager) usageV1(r *reader, path string, s *Stats) {
	if r.open(m.mode.dir("cpuacct", path)) {
		s.CPU.Usage, _ = r.number("cpuacct.usage")
	}
	if r.open(m.mode.dir("memory", path)) {
		s.Memory = memoryV1(r)
	}
}

func (m *Manager) statsV1(r *reader, path string, s *Stats) {
	m.usageV1(r, path, s)
	if r.open(m.mode.dir("cpuacct", path)) {
		r.keyed("cpuacct.stat", func(key []byte, v uint64) {
			switch string(key) {
			case "user":
				s.CPU.User = v * (1e9 / userHZ)
			case "system":
				s.CPU.System = v * (1e9 / userHZ)
			}
		})
	}
	if r.open(m.mode.dir("cpu", path)) {
		r.keyed("cpu.stat", func(key []byte, v uint64) {
			switch string(key) {
			case "nr_periods":
				s.CPU.Periods = v
			case "nr_throttled":
				s.CPU.ThrottledPeriods = v
			case "throttled_time":
				s.CPU.ThrottledTime = v
			case "nr_bursts":
				s.CPU.BurstPeriods = v
			case "burst_time":
				s.CPU.BurstTime = v
			}
		})
	}
	if s.Memory != nil && r.open(m.mode.dir("memory", path)) {
		memoryEventsV1(r, s.Memory)
	}
	if r.open(m.mode.dir("pids", path)) {
		s.Pids = pidsStats(r)
	}
	if r.open(m.mode.dir("blkio", path)) {
		s.IO = ioV1(r)
	}
	if r.open(m.mode.dir("hugetlb", path)) {
		s.Hugetlb = hugetlbStats(r, m.mode.HugePageSizes, hugetlbFiles{".usage_in_bytes", ".max_usage_in_bytes", ".failcnt"})
	}
}

func memoryV1(r *reader) *MemoryStats {
	usage, ok := r.number("memory.usage_in_bytes")
	if !ok {
		return nil
	}
	s := &MemoryStats{Usage: usage}
	s.Limit, _ = r.limit("memory.limit_in_bytes")
	var swap uint64
	// Values with total_ include the cgroups below.
	fields := map[string]*uint64{
		"total_inactive_file": &s.InactiveFile, "total_active_file": &s.ActiveFile,
		"total_dirty": &s.Dirty, "total_writeback": &s.Writeback, "total_rss": &s.RSS, "total_cache": &s.Cache, "total_mapped_file": &s.MappedFile,
		"total_pgfault": &s.PageFaults, "total_pgmajfault": &s.MajorPageFaults, "total_swap": &swap,
	}
	r.keyed("memory.stat", func(key []byte, v uint64) {
		if field := fields[string(key)]; field != nil {
			*field = v
		}
	})
	s.WorkingSet = workingSet(usage, s.InactiveFile)
	if both, ok := r.limit("memory.memsw.limit_in_bytes"); ok {
		var limit uint64
		if both > s.Limit && s.Limit > 0 {
			limit = both - s.Limit
		}
		s.SwapUsage, s.SwapLimit = &swap, &limit
	}
	return s
}

// memoryEventsV1 reads the memory counters that Usage leaves out.
func memoryEventsV1(r *reader, s *MemoryStats) {
	s.MaxUsage, _ = r.number("memory.max_usage_in_bytes")
	s.Failcnt, _ = r.number("memory.failcnt")
	s.KernelUsage, _ = r.number("memory.kmem.usage_in_bytes")
	r.keyed("memory.oom_control", func(key []byte, v uint64) {
		if string(key) == "oom_kill" {
			s.OOMKills = v
		}
	})
}

// pidsStats reads the same files on v1 and v2.
func pidsStats(r *reader) *PidsStats {
	current, ok := r.number("pids.current")
	if !ok {
		return nil
	}
	s := &PidsStats{Current: current}
	s.Limit, _ = r.limit("pids.max")
	return s
}

// ioV1 reads lines such as "8:0 Read 4096".
func ioV1(r *reader) []IOStats {
	var out []IOStats
	for _, file := range []struct {
		name  string
		bytes bool
	}{{"blkio.throttle.io_service_bytes_recursive", true}, {"blkio.throttle.io_serviced_recursive", false}} {
		for line := range bytes.Lines(r.read(file.name)) {
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue // the total
			}
			dev := ioDevice(r, &out, file.name, fields[0])
			if dev == nil {
				return nil
			}
			v := r.parse(file.name, fields[2])
			switch string(fields[1]) {
			case "Read":
				pick(file.bytes, &dev.ReadBytes, &dev.ReadOps, v)
			case "Write":
				pick(file.bytes, &dev.WriteBytes, &dev.WriteOps, v)
			case "Discard":
				pick(file.bytes, &dev.DiscardBytes, &dev.DiscardOps, v)
			}
		}
	}
	return out
}

func pick(first bool, a, b *uint64, v uint64) {
	if first {
		*a = v
	} else {
		*b = v
	}
}

// ioDevice returns the entry for "major:minor" and adds it if there is none. It returns nil after
// an error.
func ioDevice(r *reader, out *[]IOStats, file string, device []byte) *IOStats {
	major, minor, ok := bytes.Cut(device, []byte(":"))
	if !ok {
		if r.err == nil {
			r.err = fmt.Errorf("parse %s/%s: device %q", r.dir, file, device)
		}
		return nil
	}
	d := IOStats{Major: r.parse(file, major), Minor: r.parse(file, minor)}
	if r.err != nil {
		return nil
	}
	for i := range *out {
		if (*out)[i].Major == d.Major && (*out)[i].Minor == d.Minor {
			return &(*out)[i]
		}
	}
	*out = append(*out, d)
	return &(*out)[len(*out)-1]
}

// hugetlbFiles are the suffixes of a page size's counter files. A suffix is "" if the cgroup
// version has no such file.
type hugetlbFiles struct{ usage, peak, failcnt string }

// hugetlbStats reads the counters of every huge page size of the host.
func hugetlbStats(r *reader, sizes []string, files hugetlbFiles) []HugetlbStats {
	var out []HugetlbStats
	for _, size := range sizes {
		s := HugetlbStats{PageSize: size}
		var ok bool
		if s.Usage, ok = r.number("hugetlb." + size + files.usage); !ok {
			continue
		}
		if files.peak != "" {
			s.MaxUsage, _ = r.number("hugetlb." + size + files.peak)
		}
		if files.failcnt != "" {
			s.Failcnt, _ = r.number("hugetlb." + size + files.failcnt)
		}
		out = append(out, s)
	}
	return out
}
