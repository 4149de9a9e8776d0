package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomKills returns how many processes in a memory cgroup, and below it, the kernel has killed for
// lack of memory. The value is oom_kill in memory.events (cgroup v2) or in memory.oom_control (v1,
// since Linux 4.13). The result is false if neither can be read.
func oomKills(dir string) (uint64, bool) {
	if dir == "" {
		return 0, false
	}
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		if n, ok := counter(string(data), "oom_kill"); ok {
			return n, true
		}
	}
	return 0, false
}

// counter returns N of the line "name N".
func counter(text, name string) (uint64, bool) {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			n, err := strconv.ParseUint(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// memoryCgroup returns the directory of a process's memory cgroup, or "" if the keeper sees none.
func memoryCgroup(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for _, dir := range cgroupDirs(string(data), "memory") {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return ""
}

// cgroupDirs returns candidates for the directory of one controller, from the content of
// /proc/PID/cgroup: v1 first, then v2.
func cgroupDirs(text, controller string) []string {
	const root = "/sys/fs/cgroup"
	var v1, v2 []string
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || f[2] == "/" {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			v2 = append(v2, filepath.Join(root, f[2]), filepath.Join(root, "unified", f[2]))
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if c == controller {
				v1 = append(v1, filepath.Join(root, controller, f[2]))
			}
		}
	}
	return append(v1, v2...)
}
