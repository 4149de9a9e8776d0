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

// initName is the cgroup of a pod's own init, beside those of its containers:
// in cgroup v2 a cgroup that distributes controllers holds no processes.
const initName = "mica-init"

// MakeInit makes the cgroup for a pod's own init below the pod's cgroup, and
// returns the absolute cgroup.procs files that move a process into it.
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

// RemoveInit removes what MakeInit made. It is idempotent.
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

// Mark writes into a cgroup, in every hierarchy that has it, whose it is. ListPods finds no others.
// A kernel without attributes on cgroups is no error: nothing is found there.
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

// marked says whether a directory bears the owner's mark.
func marked(dir, owner string) bool {
	value := make([]byte, 256) // an owner is shorter, and one that is not is another
	n, err := unix.Lgetxattr(dir, ownerXattr, value)
	return err == nil && owner != "" && string(value[:n]) == owner
}

// ListPods returns the cgroups of pods below the default parent that bear the
// owner's mark, by the pod's ID: of those that PodParent names for pods without
// a cgroup_parent. What else is there may be another daemon's, or hold pods of
// the kubelet's.
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
