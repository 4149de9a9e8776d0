package stats

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes is a reading of a container's processes, from [ReadProcesses].
type Processes struct {
	processes, threads   uint64
	descriptors, sockets uint64
	// maxOpenFiles is the soft limit of the first process, nil if it has ended.
	maxOpenFiles *uint64
}

// ReadProcesses counts threads and open files of the processes in /proc. A process that ends
// meanwhile is counted as far as it was read. init is the PID of the container's first process, 0
// if there is none. It may be called concurrently.
func ReadProcesses(pids []int, init int) *Processes {
	r := &Processes{processes: uint64(len(pids))}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		tasks, _ := os.ReadDir(filepath.Join(dir, "task"))
		r.threads += uint64(len(tasks))
		files, _ := os.ReadDir(filepath.Join(dir, "fd"))
		r.descriptors += uint64(len(files))
		for _, f := range files {
			target, err := os.Readlink(filepath.Join(dir, "fd", f.Name()))
			if err == nil && strings.HasPrefix(target, "socket:") {
				r.sockets++
			}
		}
	}
	var limit unix.Rlimit
	if init > 0 && unix.Prlimit(init, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		r.maxOpenFiles = &limit.Cur
	}
	return r
}

func processFamilies() []family {
	process := func(f func(*Processes) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if r.Processes == nil {
				return nil
			}
			return one(f(r.Processes))
		}
	}
	return []family{
		gauge("container_processes", "Processes.",
			process(func(p *Processes) uint64 { return p.processes })),
		gauge("container_threads", "Threads.",
			process(func(p *Processes) uint64 { return p.threads })),
		gauge("container_threads_max", "Limit of threads, 0 for none.", func(r *Reading) []sample {
			if r.Stats == nil || r.Stats.Pids == nil || r.Processes == nil {
				return nil
			}
			return one(r.Stats.Pids.Limit)
		}),
		gauge("container_file_descriptors", "Open file descriptors.",
			process(func(p *Processes) uint64 { return p.descriptors })),
		gauge("container_sockets", "Open sockets.",
			process(func(p *Processes) uint64 { return p.sockets })),
		gauge("container_ulimits_soft", "Soft limit of a resource of the first process; 18446744073709551615 for none.", func(r *Reading) []sample {
			if r.Processes == nil || r.Processes.maxOpenFiles == nil {
				return nil
			}
			return one(*r.Processes.maxOpenFiles, "max_open_files")
		}, "ulimit"),
	}
}
