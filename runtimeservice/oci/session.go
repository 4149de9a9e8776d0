package oci

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// sessionOf returns the running processes of the leader's session and the leader's descendants,
// without the leader itself. OCI runtimes start every exec as the leader of a new session
// (setsid(2)). Descendants in sessions of their own are found as long as their parents run.
func sessionOf(leader int) ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	parents := map[int]int{}
	var members, others []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == leader {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		stat, err := parseStat(string(text))
		if err != nil {
			return nil, err
		}
		parents[pid] = stat.parent
		switch {
		case stat.dead:
		case stat.session == leader:
			members = append(members, pid)
		default:
			others = append(others, pid)
		}
	}
	for _, pid := range others {
		if descends(parents, pid, leader) {
			members = append(members, pid)
		}
	}
	return members, nil
}

// descends follows the chain of parents. These were read one after the other, so PID reuse may form
// a cycle.
func descends(parents map[int]int, pid, from int) bool {
	for range len(parents) {
		parent, ok := parents[pid]
		if parent == from {
			return true
		}
		if !ok || parent <= 1 {
			return false
		}
		pid = parent
	}
	return false
}

type procStat struct {
	parent, session int
	dead            bool
}

// parseStat parses /proc/<pid>/stat (proc_pid_stat(5)). The process name in brackets may contain
// any character, so fields are counted from the last bracket.
func parseStat(text string) (procStat, error) {
	_, rest, ok := cutLast(text, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 4 {
		return procStat{}, errors.New("parse stat of a process")
	}
	parent, err1 := strconv.Atoi(fields[1])
	session, err2 := strconv.Atoi(fields[3])
	if err := errors.Join(err1, err2); err != nil {
		return procStat{}, err
	}
	return procStat{parent: parent, session: session, dead: fields[0] == "Z" || fields[0] == "X"}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
