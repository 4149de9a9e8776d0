// Package cgroup makes, measures, limits and removes the cgroups of pods and containers, on cgroup
// v1 and v2, directly in the cgroup file system or through systemd.
//
// Paths are relative to the root of the cgroup file system, for example
// "/kubepods/pod1/<container>", and the same in every v1 hierarchy. Only the linux.cgroupsPath for
// an OCI runtime may have another form (ContainerPath). The package makes the parent cgroups; the
// OCI runtime makes the container's own. Limits are written with github.com/opencontainers/cgroups.
// Counters are read directly from their files, since they are read often.
//
// The package keeps no state in memory or on disk besides the cgroups themselves. After a restart,
// a new Manager therefore finds the cgroups made before.
package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"
)

// Driver selects how cgroups are made.
type Driver string

// The drivers, spelled as in the kubelet's configuration.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// scopePrefix begins the names of the containers' systemd scopes.
const scopePrefix = "mica"

// Options configures a Manager.
type Options struct {
	// Driver defaults to Cgroupfs.
	Driver Driver
	// DefaultParent is the parent of pods whose request names none. It is a path for cgroupfs
	// (default "/mica") and a slice for systemd (default "mica.slice").
	DefaultParent string
}

// Manager works on the cgroups of one host. It has no state but its options and is safe for
// concurrent use.
type Manager struct {
	mode    Mode
	options Options
}

// New returns a manager for the host's mode. It returns ErrFailedPrecondition for the systemd
// driver if systemd is not running, and ErrInvalidArgument for an unknown driver or a bad default
// parent.
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

// newManager is New without the check that systemd is running.
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

// Mode returns the mode that New was given.
func (m *Manager) Mode() Mode { return m.mode }

// Driver returns the driver in use.
func (m *Manager) Driver() Driver { return m.options.Driver }

// Limits of a cgroup parent in bytes and slashes. The kernel limits names to 255 bytes and paths to
// 4,096.
const (
	maxParent  = 1024
	maxParents = 32
	maxName    = 255
)

// PodParent returns a pod's cgroup: CRI's cgroup_parent, or one named after the pod below the
// default parent. With systemd, the last element of cgroup_parent must be a slice; its name
// determines the path. A bad cgroup_parent is ErrInvalidArgument, also one that leaves no room for
// the cgroups of containers below it.
func (m *Manager) PodParent(criParent, podID string) (string, error) {
	if len(criParent) > maxParent || strings.Count(criParent, "/") > maxParents {
		return "", fmt.Errorf("cgroup parent %.40q… has %d bytes and %d slashes, more than %d or %d: %w",
			criParent, len(criParent), strings.Count(criParent, "/"), maxParent, maxParents, errdefs.ErrInvalidArgument)
	}
	for name := range strings.SplitSeq(criParent, "/") {
		if len(name) > maxName {
			return "", fmt.Errorf("cgroup parent %.40q… has a name of %d bytes, more than %d: %w", criParent, len(name), maxName, errdefs.ErrInvalidArgument)
		}
	}
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

// ContainerPath returns the OCI linux.cgroupsPath of a container below a pod's cgroup:
// "/parent/id", or "parent.slice:mica:id" with systemd.
func (m *Manager) ContainerPath(parent, id string) string {
	if m.options.Driver == Systemd {
		return path.Base(parent) + ":" + scopePrefix + ":" + id
	}
	return path.Join("/", parent, id)
}

// ContainerDir returns the cgroup of a container made with ContainerPath(parent, id), for Stats,
// Pids and the other methods.
func (m *Manager) ContainerDir(parent, id string) string {
	if m.options.Driver == Systemd {
		return path.Join("/", parent, scopePrefix+"-"+id+".scope")
	}
	return path.Join("/", parent, id)
}

// checkPath rejects the root and paths with "..".
func checkPath(p string) error {
	if path.Clean("/"+p) == "/" || slices.Contains(strings.Split(p, "/"), "..") || strings.ContainsRune(p, 0) {
		return fmt.Errorf("cgroup %q: %w", p, errdefs.ErrInvalidArgument)
	}
	return nil
}
