package stats

import (
	"time"

	"github.com/micarun/mica/runtimeservice/cgroup"
)

func pressureFamilies() []family {
	stall := func(of func(*cgroup.Stats) *cgroup.Pressure, line func(*cgroup.Pressure) cgroup.PressureLine) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Stats == nil || of(r.Stats) == nil {
				return nil
			}
			return one(line(of(r.Stats)).Total / uint64(time.Second/time.Microsecond))
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
