package cgroup

import "bytes"

// usageV2 and statsV2 read the interface files of the kernel's
// Documentation/admin-guide/cgroup-v2.rst.
func (m *Manager) usageV2(r *reader, path string, s *Stats) {
	r.open(m.mode.dir("", path))
	cpu := map[string]*uint64{
		"usage_usec": &s.CPU.Usage, "user_usec": &s.CPU.User, "system_usec": &s.CPU.System,
		"throttled_usec": &s.CPU.ThrottledTime, "burst_usec": &s.CPU.BurstTime,
	}
	r.keyed("cpu.stat", func(key []byte, v uint64) {
		switch {
		case cpu[string(key)] != nil:
			*cpu[string(key)] = v * 1000
		case string(key) == "nr_periods":
			s.CPU.Periods = v
		case string(key) == "nr_throttled":
			s.CPU.ThrottledPeriods = v
		case string(key) == "nr_bursts":
			s.CPU.BurstPeriods = v
		}
	})
	s.CPU.Pressure = r.pressure("cpu.pressure")
	s.Memory = memoryV2(r)
	s.IOPressure = r.pressure("io.pressure")
}

func (m *Manager) statsV2(r *reader, path string, s *Stats) {
	m.usageV2(r, path, s)
	if s.Memory != nil {
		memoryEventsV2(r, s.Memory)
	}
	s.Pids = pidsStats(r)
	s.IO = ioV2(r)
	s.Hugetlb = hugetlbStats(r, m.mode.HugePageSizes, hugetlbFiles{usage: ".current"})
}

func memoryV2(r *reader) *MemoryStats {
	usage, ok := r.number("memory.current")
	if !ok {
		return nil
	}
	s := &MemoryStats{Usage: usage}
	s.Limit, _ = r.limit("memory.max")
	fields := map[string]*uint64{
		"inactive_file": &s.InactiveFile, "active_file": &s.ActiveFile, "file_dirty": &s.Dirty, "file_writeback": &s.Writeback,
		"anon": &s.RSS, "file": &s.Cache, "file_mapped": &s.MappedFile, "kernel": &s.KernelUsage, // the last since Linux 5.18
		"pgfault": &s.PageFaults, "pgmajfault": &s.MajorPageFaults,
	}
	r.keyed("memory.stat", func(key []byte, v uint64) {
		if field := fields[string(key)]; field != nil {
			*field = v
		}
	})
	s.WorkingSet = workingSet(usage, s.InactiveFile)
	if swap, ok := r.number("memory.swap.current"); ok {
		limit, _ := r.limit("memory.swap.max")
		s.SwapUsage, s.SwapLimit = &swap, &limit
	}
	s.Pressure = r.pressure("memory.pressure")
	return s
}

// memoryEventsV2 reads the memory counters that Usage leaves out.
func memoryEventsV2(r *reader, s *MemoryStats) {
	s.MaxUsage, _ = r.number("memory.peak") // Linux 5.19
	r.keyed("memory.events", func(key []byte, v uint64) {
		switch string(key) {
		case "max":
			s.Failcnt = v
		case "oom_kill":
			s.OOMKills = v
		}
	})
}

// ioV2 reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func ioV2(r *reader) []IOStats {
	var out []IOStats
	for line := range bytes.Lines(r.read("io.stat")) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue // a device without counters
		}
		dev := ioDevice(r, &out, "io.stat", fields[0])
		if dev == nil {
			return nil
		}
		into := map[string]*uint64{
			"rbytes": &dev.ReadBytes, "wbytes": &dev.WriteBytes, "dbytes": &dev.DiscardBytes,
			"rios": &dev.ReadOps, "wios": &dev.WriteOps, "dios": &dev.DiscardOps,
		}
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			if into[string(key)] != nil {
				*into[string(key)] = r.parse("io.stat", value)
			}
		}
	}
	return out
}
