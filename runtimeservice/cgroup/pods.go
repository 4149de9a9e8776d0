package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// initName is the cgroup of a pod's own init. It is a sibling of the containers' cgroups, since in
// cgroup v2 a cgroup that distributes controllers may not contain processes.
const initName = "mica-init"

// MakeInit makes the cgroup of a pod's own init below the pod's cgroup. It returns the absolute
// cgroup.procs files through which a process is moved into it.
func (m *Manager) MakeInit(parent string) (procs []string, err error) {
	if err := checkPath(parent); err != nil {
		return nil, err
	}
	leaf := path.Join(parent, initName)
	if err := m.makeDirs(leaf); err != nil {
		return nil, fmt.Errorf("make cgroup %s: %w", leaf, err)
	}
	for _, dir := range m.mode.dirs(leaf) {
		procs = append(procs, filepath.Join(dir, "cgroup.procs"))
	}
	return procs, nil
}

// InitDir returns the cgroup that MakeInit makes.
func (m *Manager) InitDir(parent string) string { return path.Join("/", parent, initName) }

// RemoveInit removes the cgroup that MakeInit made. It is idempotent. If the cgroup still holds
// processes after five seconds, or when ctx ends, it returns ErrFailedPrecondition.
func (m *Manager) RemoveInit(ctx context.Context, parent string) error {
	if err := checkPath(parent); err != nil {
		return err
	}
	leaf := path.Join(parent, initName)
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := m.removeDirs(ctx, leaf); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", leaf, err)
	}
	return nil
}

// ownerXattr names the daemon that made a pod's cgroup. Containers cannot change it: trusted
// attributes need CAP_SYS_ADMIN in the initial user namespace, and a writable cgroup mount.
const ownerXattr = "trusted.mica.owner"

// Mark writes the owner to a cgroup, in every hierarchy that has it. ListPods returns only marked
// cgroups. If the kernel does not support these attributes on cgroups, Mark returns nil, and
// ListPods finds nothing.
func (m *Manager) Mark(path, owner string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	for _, dir := range m.mode.dirs(path) {
		err := unix.Lsetxattr(dir, ownerXattr, []byte(owner), 0)
		if err != nil && !gone(err) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("mark cgroup %s: %w", path, err)
		}
	}
	return nil
}

// marked reports whether a directory is marked with the owner.
func marked(dir, owner string) bool {
	value := make([]byte, 256) // owners are shorter; a longer value is not equal
	n, err := unix.Lgetxattr(dir, ownerXattr, value)
	return err == nil && owner != "" && string(value[:n]) == owner
}

// ListPods returns the cgroups of pods below the default parent that are marked with the owner, by
// pod ID. These are the cgroups that PodParent names for pods without a cgroup_parent. Other
// cgroups there may belong to another daemon or to the kubelet.
func (m *Manager) ListPods(owner string) (map[string]string, error) {
	const anyPod = "anypod"
	like, err := m.PodParent("", anyPod)
	if err != nil {
		return nil, err
	}
	prefix, suffix, _ := strings.Cut(path.Base(like), anyPod)
	pods := map[string]string{}
	for _, dir := range m.mode.dirs(path.Dir(like)) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups of pods: %w", err)
		}
		for _, e := range entries {
			id := strings.TrimSuffix(strings.TrimPrefix(e.Name(), prefix), suffix)
			if e.IsDir() && e.Name() == prefix+id+suffix && marked(filepath.Join(dir, e.Name()), owner) {
				pods[id] = path.Join(path.Dir(like), e.Name())
			}
		}
	}
	return pods, nil
}
