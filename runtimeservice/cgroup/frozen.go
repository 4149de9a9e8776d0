package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KillFrozen kills all processes of a cgroup and below and lets them exit, if any of these cgroups
// is frozen, also by an ancestor. Otherwise it does nothing. On v1 SIGKILL takes effect only after
// the thaw. KillFrozen therefore thaws the cgroup and those below. If an ancestor is frozen, it
// moves the killed processes out, and the ancestor's other processes stay frozen. On v2 it does
// nothing, since the kernel ends killed processes even if they are frozen. It does not wait. A
// caller that waits for the processes has to call it repeatedly, since the cgroup can be frozen
// again.
func (m *Manager) KillFrozen(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	frozen, err := m.frozenAtOrBelow(path)
	if err == nil && frozen {
		_, err = m.killOnce(path)
	}
	if err != nil {
		return fmt.Errorf("kill frozen cgroup %s: %w", path, err)
	}
	return nil
}

// KillOutside kills processes in any cgroup, also frozen ones. A process that has already exited is
// no error.
func (m *Manager) KillOutside(pids []int) error {
	return errors.Join(killPids(pids), m.Unfreeze(pids))
}

// frozenAtOrBelow reports whether v1's freezer stops processes of the cgroup or below.
func (m *Manager) frozenAtOrBelow(path string) (bool, error) {
	frozen := false
	err := m.eachFreezer(path, func(dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		if err == nil && strings.TrimSpace(string(text)) != "THAWED" {
			frozen = true
			return fs.SkipAll
		}
		return err
	})
	return frozen, err
}

// release lets killed processes exit. It thaws the cgroup and those below, and moves the processes
// out if an ancestor stays frozen.
func (m *Manager) release(path string, pids []int) error {
	held := false
	err := m.eachFreezer(path, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, "freezer.parent_freezing"))
		held = held || strings.TrimSpace(string(text)) == "1"
		return err
	})
	if err != nil || !held {
		return err
	}
	return m.Unfreeze(pids)
}

// Unfreeze moves processes that have been killed or stopped by a signal to the root of v1's freezer
// hierarchy, which cannot be frozen. None of their code runs there. On v2 it does nothing, since
// the kernel ends killed processes even if they are frozen. A process that has exited is no error.
func (m *Manager) Unfreeze(pids []int) error {
	root := m.mode.Hierarchies["freezer"]
	if m.mode.V2 || root == "" {
		return nil
	}
	var errs []error
	for _, pid := range pids {
		err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("move process %d out of a frozen cgroup: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// eachFreezer calls f for the cgroup's directory in v1's freezer hierarchy and for those below,
// parents first. It skips directories that are removed meanwhile, also during f.
func (m *Manager) eachFreezer(path string, f func(dir string) error) error {
	top := m.mode.dir("freezer", path)
	if m.mode.V2 || top == "" {
		return nil
	}
	return filepath.WalkDir(top, func(dir string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = f(dir)
		}
		if gone(err) {
			return nil
		}
		return err
	})
}

// killPids sends SIGKILL. A process that has exited is no error.
func killPids(pids []int) error {
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}
