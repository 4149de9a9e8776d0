package runtimeservice

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processReading is what /proc says of a container's processes.
type processReading struct {
	processes, threads   uint64
	descriptors, sockets uint64
	// maxOpenFiles is the soft limit of the first process, nil if it is gone.
	maxOpenFiles *uint64
}

// readProcesses counts what the processes have open. Those that end meanwhile
// count as far as they were read. init is the container's first process.
func readProcesses(pids []int, init int) *processReading {
	r := &processReading{processes: uint64(len(pids))}
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
	process := func(f func(*processReading) uint64) func(*reading) []sample {
		return func(r *reading) []sample {
			if r.processes == nil {
				return nil
			}
			return one(f(r.processes))
		}
	}
	return []family{
		gauge("container_processes", "Processes.",
			process(func(p *processReading) uint64 { return p.processes })),
		gauge("container_threads", "Threads.",
			process(func(p *processReading) uint64 { return p.threads })),
		gauge("container_threads_max", "Limit of threads, 0 for none.", func(r *reading) []sample {
			if r.stats == nil || r.stats.Pids == nil || r.processes == nil {
				return nil
			}
			return one(r.stats.Pids.Limit)
		}),
		gauge("container_file_descriptors", "Open file descriptors.",
			process(func(p *processReading) uint64 { return p.descriptors })),
		gauge("container_sockets", "Open sockets.",
			process(func(p *processReading) uint64 { return p.sockets })),
		gauge("container_ulimits_soft", "Soft limit of a resource of the first process; the largest number there is for none.", func(r *reading) []sample {
			if r.processes == nil || r.processes.maxOpenFiles == nil {
				return nil
			}
			return one(*r.processes.maxOpenFiles, "max_open_files")
		}, "ulimit"),
	}
}
