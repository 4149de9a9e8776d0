// Package cgroup makes, measures, limits and removes the control groups of
// pods and containers, on cgroup v1 and v2, by the file system or by systemd.
//
// Paths are those of the cgroup file system relative to its root, for example
// "/kubepods/pod1/<container>", the same in every v1 hierarchy. Only what goes
// to an OCI runtime as linux.cgroupsPath may look different (ContainerPath).
// The package makes the parents; the cgroup of a container itself is made by
// the OCI runtime. Limits are written through github.com/opencontainers/cgroups;
// counters, which are read often, straight from their files.
//
// Nothing is kept in memory or on disk besides the cgroups themselves, so a
// Manager made after a restart sees what the one before made.
package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"
)

// Driver says who makes cgroups.
type Driver string

// The drivers, spelled as in the kubelet's configuration.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// scopePrefix begins the names of container scopes under systemd.
const scopePrefix = "mica"

// Options says how a Manager works.
type Options struct {
	// Driver is Cgroupfs where empty.
	Driver Driver
	// DefaultParent is the parent of pods that name none: a path for
	// cgroupfs ("/mica" where empty), a slice for systemd ("mica.slice").
	DefaultParent string
}

// Manager works on the cgroups of one host. It holds no state but its
// options and is safe for concurrent use.
type Manager struct {
	mode    Mode
	options Options
}

// New returns a manager for the host's mode. The systemd driver where systemd
// does not run is ErrFailedPrecondition.
func New(mode Mode, o Options) (*Manager, error) {
	switch o.Driver {
	case "":
		o.Driver = Cgroupfs
	case Cgroupfs:
	case Systemd:
		if !systemd.IsRunningSystemd() {
			return nil, fmt.Errorf("cgroup driver systemd: systemd is not running: %w", errdefs.ErrFailedPrecondition)
		}
	default:
		return nil, fmt.Errorf("cgroup driver %q: %w", o.Driver, errdefs.ErrInvalidArgument)
	}
	return newManager(mode, o)
}

// newManager is New without looking at the host.
func newManager(mode Mode, o Options) (*Manager, error) {
	if o.DefaultParent == "" {
		o.DefaultParent = "/mica"
		if o.Driver == Systemd {
			o.DefaultParent = "mica.slice"
		}
	}
	m := &Manager{mode: mode, options: o}
	if _, err := m.PodParent("", "x"); err != nil {
		return nil, fmt.Errorf("default cgroup parent: %w", err)
	}
	return m, nil
}

// Mode returns what New was given.
func (m *Manager) Mode() Mode { return m.mode }

// Driver returns the driver in use.
func (m *Manager) Driver() Driver { return m.options.Driver }

// PodParent returns the cgroup of a pod: CRI's cgroup_parent, or one named
// after the pod below the default parent. For systemd the last element of
// cgroup_parent must be a slice, whose name decides about the path.
func (m *Manager) PodParent(criParent, podID string) (string, error) {
	if slices.Contains(strings.Split(criParent, "/"), "..") || strings.ContainsRune(criParent, 0) {
		return "", fmt.Errorf("cgroup parent %q: %w", criParent, errdefs.ErrInvalidArgument)
	}
	if m.options.Driver != Systemd {
		if criParent == "" {
			criParent = path.Join(m.options.DefaultParent, podID)
		}
		return path.Join("/", criParent), nil
	}
	slice := path.Base(criParent)
	if criParent == "" {
		slice = strings.TrimSuffix(m.options.DefaultParent, ".slice") + "-" + podID + ".slice"
	}
	expanded, err := systemd.ExpandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("cgroup parent %q: not a slice: %w", criParent, errdefs.ErrInvalidArgument)
	}
	return expanded, nil
}

// ContainerPath returns the OCI linux.cgroupsPath for a container below a
// pod's cgroup: "/parent/id" or "parent.slice:mica:id".
func (m *Manager) ContainerPath(parent, id string) string {
	if m.options.Driver == Systemd {
		return path.Base(parent) + ":" + scopePrefix + ":" + id
	}
	return path.Join("/", parent, id)
}

// ContainerDir returns the cgroup in which a container made with
// ContainerPath(parent, id) lies, for Stats, Pids and the other methods.
func (m *Manager) ContainerDir(parent, id string) string {
	if m.options.Driver == Systemd {
		return path.Join("/", parent, scopePrefix+"-"+id+".scope")
	}
	return path.Join("/", parent, id)
}

// checkPath refuses the root and paths that climb.
func checkPath(p string) error {
	if path.Clean("/"+p) == "/" || slices.Contains(strings.Split(p, "/"), "..") || strings.ContainsRune(p, 0) {
		return fmt.Errorf("cgroup %q: %w", p, errdefs.ErrInvalidArgument)
	}
	return nil
}
