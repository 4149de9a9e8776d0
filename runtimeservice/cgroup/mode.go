package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
)

// namedSystemd is the v1 hierarchy without controllers in which systemd tracks processes.
const namedSystemd = "name=systemd"

// Mode describes how cgroups are mounted on this host.
type Mode struct {
	// V2 is true if only the unified hierarchy is used. Otherwise the controllers are in v1
	// hierarchies.
	V2 bool
	// Unified is the mount point of the unified hierarchy, also in hybrid mode. It is "" if there
	// is none.
	Unified string
	// Hierarchies maps each v1 controller (and "name=systemd") to its mount point. Controllers that
	// are mounted together have the same mount point.
	Hierarchies map[string]string
	// Controllers are the usable controllers, sorted, by their v2 names ("io", not "blkio").
	Controllers []string
	// HugePageSizes are the host's huge page sizes, as in the names of the hugetlb files ("2MB").
	HugePageSizes []string
}

// Detect reads how cgroups are mounted. It returns ErrUnavailable if no controllers are usable.
func Detect() (Mode, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return Mode{}, fmt.Errorf("read mounts: %w", err)
	}
	m, err := modeOf(mounts)
	if err != nil {
		return Mode{}, err
	}
	m.HugePageSizes = cgroups.HugePageSizes()
	return m, nil
}

// modeOf derives the mode from the cgroup mounts. If a hierarchy is mounted more than once, the
// first mount is the node's own; later ones are bind mounts of it.
func modeOf(mounts []*mountinfo.Info) (Mode, error) {
	m := Mode{Hierarchies: map[string]string{}}
	for _, mount := range mounts {
		if mount.FSType == "cgroup2" {
			if m.Unified == "" {
				m.Unified = mount.Mountpoint
			}
			continue
		}
		for _, option := range strings.Split(mount.VFSOptions, ",") {
			if _, have := m.Hierarchies[option]; !have && (knownV1(option) || option == namedSystemd) {
				m.Hierarchies[option] = mount.Mountpoint
			}
		}
	}
	switch {
	case m.Hierarchies["memory"] != "" || m.Hierarchies["cpu"] != "":
		m.Controllers = v1Controllers(m.Hierarchies)
	case m.Unified != "":
		m.V2, m.Hierarchies = true, nil
		text, err := os.ReadFile(filepath.Join(m.Unified, "cgroup.controllers"))
		if err != nil {
			return Mode{}, fmt.Errorf("read controllers: %w", err)
		}
		m.Controllers = strings.Fields(string(text))
		slices.Sort(m.Controllers)
	default:
		return Mode{}, fmt.Errorf("no cgroup controllers are mounted: %w", errdefs.ErrUnavailable)
	}
	return m, nil
}

func knownV1(option string) bool {
	return slices.Contains([]string{
		"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
		"net_cls", "net_prio", "perf_event", "rdma", "misc",
	}, option)
}

func v1Controllers(hierarchies map[string]string) []string {
	var out []string
	for name := range hierarchies {
		switch name {
		case namedSystemd, "cpuacct":
		case "blkio":
			out = append(out, "io")
		default:
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// roots returns the distinct mount points in which cgroups have directories, sorted.
func (m Mode) roots() []string {
	if m.V2 {
		return []string{m.Unified}
	}
	roots := []string{}
	for _, mount := range m.Hierarchies {
		roots = append(roots, mount)
	}
	if m.Unified != "" {
		roots = append(roots, m.Unified)
	}
	slices.Sort(roots)
	return slices.Compact(roots)
}

// dir returns the absolute directory of a cgroup for a v1 controller, or its only directory on v2.
// It returns "" if the controller is not mounted.
func (m Mode) dir(controller, path string) string {
	root := m.Unified
	if !m.V2 {
		root = m.Hierarchies[controller]
	}
	if root == "" {
		return ""
	}
	return filepath.Join(root, filepath.Join("/", path))
}

// dirs returns the absolute directories of a cgroup in all hierarchies.
func (m Mode) dirs(path string) []string {
	var out []string
	for _, root := range m.roots() {
		out = append(out, filepath.Join(root, filepath.Join("/", path)))
	}
	return out
}

// Dirs returns the absolute directories of a cgroup: in the v2 hierarchy, "" if there is none, and
// in the v1 hierarchies.
func (m *Manager) Dirs(path string) (unified string, v1 []string) {
	for _, dir := range m.mode.dirs(path) {
		if m.mode.Unified != "" && strings.HasPrefix(dir, m.mode.Unified+"/") {
			unified = dir
		} else {
			v1 = append(v1, dir)
		}
	}
	return unified, v1
}
