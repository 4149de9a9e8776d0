package server

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomScore makes the keeper one of the last processes that the kernel kills for lack of memory.
const oomScore = -999

// settleDown protects the process: it lowers the OOM score, and makes separate cgroups so that
// whatever ends the daemon's cgroup does not end the keeper. Failures are logged only. It returns
// the cgroup directories that it made.
func settleDown(o Options) []string {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0); err != nil {
		log.Printf("lower the OOM score: %v", err)
	}
	if o.OwnCgroup {
		return nil
	}
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(o.Dir))
	return ownCgroups(fmt.Sprintf("mica-%s-%08x", filepath.Base(o.Dir), sum.Sum32()))
}

// ownCgroups moves the process into a cgroup called name, at the root of each hierarchy in which
// the process is not at the root.
func ownCgroups(name string) []string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var made []string
	for line := range bytes.Lines(data) {
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) != 3 || f[2] == "/" || f[2] == "/"+name {
			continue
		}
		for _, root := range hierarchyRoots(f[1]) {
			if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
				continue
			}
			dir := filepath.Join(root, name)
			if err := enterCgroup(dir); err != nil {
				log.Printf("make a separate cgroup: %v", err)
				continue
			}
			made = append(made, dir)
			break
		}
	}
	return made
}

// hierarchyRoots returns the usual mount points of a hierarchy in /proc/self/cgroup.
func hierarchyRoots(controllers string) []string {
	const root = "/sys/fs/cgroup"
	if controllers == "" {
		return []string{root, root + "/unified"}
	}
	if name, ok := strings.CutPrefix(controllers, "name="); ok {
		return []string{root + "/" + name}
	}
	first, _, _ := strings.Cut(controllers, ",")
	return []string{root + "/" + controllers, root + "/" + first}
}

func enterCgroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		_ = os.Remove(dir)
		return err
	}
	return nil
}
