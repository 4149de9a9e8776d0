// Package cgroup makes, measures, limits and removes the control groups of
// pods and containers, on cgroup v1 and v2, by the file system or by systemd.
//
// Paths are those of the cgroup file system, relative to its root, for
// example "/kubepods/pod1/<container>". Only what goes to an OCI runtime as
// linux.cgroupsPath may look different (ContainerPath). The package makes the
// parents; the cgroup of a container itself is made by the OCI runtime.
package cgroup

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Driver says who makes cgroups.
type Driver string

// The drivers, spelled as in the kubelet's configuration.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// Mode is how cgroups are mounted on this host.
type Mode struct {
	// V2 is true where the unified hierarchy holds all controllers.
	V2 bool
	// Unified is the mount point of the unified hierarchy, also in hybrid
	// mode; "" where there is none.
	Unified string
	// Hierarchies maps each v1 controller (and "name=systemd") to its mount
	// point.
	Hierarchies map[string]string
	// Controllers are the names of the usable controllers, v2 names.
	Controllers []string
}

// Detect reads how cgroups are mounted.
func Detect() (Mode, error) { return Mode{}, errors.ErrUnsupported }

// Options says how a Manager works.
type Options struct {
	// Driver is Cgroupfs where empty.
	Driver Driver
	// DefaultParent is the parent of pods that name none; "/mica" (or
	// "mica.slice") where empty.
	DefaultParent string
}

// Manager works on the cgroups of one host. It holds no state but its
// options and is safe for concurrent use.
type Manager struct{}

// New returns a manager for the host's mode.
func New(mode Mode, o Options) (*Manager, error) { return nil, errors.ErrUnsupported }

// Mode returns what New was given.
func (m *Manager) Mode() Mode { return Mode{} }

// Driver returns the driver in use.
func (m *Manager) Driver() Driver { return "" }

// PodParent returns the cgroup of a pod: CRI's cgroup_parent in the driver's
// form, or one named after the pod below the default parent.
func (m *Manager) PodParent(criParent, podID string) (string, error) {
	return "", errors.ErrUnsupported
}

// ContainerPath returns the OCI linux.cgroupsPath for a container below a
// pod's cgroup, in the driver's form.
func (m *Manager) ContainerPath(parent, id string) string { return "" }

// ContainerDir returns the cgroup in which a container made with
// ContainerPath(parent, id) lies, for Stats, Pids and the other methods.
func (m *Manager) ContainerDir(parent, id string) string { return "" }

// EnsureParent makes a pod's cgroup in every hierarchy, and says whether it
// was absent before.
func (m *Manager) EnsureParent(ctx context.Context, path string) (created bool, err error) {
	return false, errors.ErrUnsupported
}

// RemoveParent removes a cgroup and everything below it from every
// hierarchy. It is idempotent; a cgroup that still holds processes is an error.
func (m *Manager) RemoveParent(ctx context.Context, path string) error { return errors.ErrUnsupported }

// SetResources writes limits of a pod's cgroup.
func (m *Manager) SetResources(path string, r *specs.LinuxResources) error {
	return errors.ErrUnsupported
}

// Stats reads the counters of a cgroup; ErrNotFound where it does not exist.
func (m *Manager) Stats(path string) (Stats, error) { return Stats{}, errors.ErrUnsupported }

// MemoryDir returns the absolute directory with a cgroup's memory controller.
func (m *Manager) MemoryDir(path string) string { return "" }

// OOMKills returns how many processes the kernel's OOM killer has taken from
// the cgroup at the absolute directory dir (of MemoryDir).
func (m *Manager) OOMKills(dir string) (uint64, error) { return 0, errors.ErrUnsupported }

// Pids returns all processes in a cgroup and below.
func (m *Manager) Pids(path string) ([]int, error) { return nil, errors.ErrUnsupported }

// KillAll kills every process in a cgroup and below and returns when none is
// left.
func (m *Manager) KillAll(ctx context.Context, path string) error { return errors.ErrUnsupported }

// List returns the cgroups below prefix in any hierarchy, sorted.
func (m *Manager) List(prefix string) ([]string, error) { return nil, errors.ErrUnsupported }
