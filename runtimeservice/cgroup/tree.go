package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	cgroupsv1 "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// removeTimeout bounds RemoveParent, RemoveInit and KillAll. The kernel needs a moment after the
// last process has exited.
const removeTimeout = 5 * time.Second

// EnsureParent makes a pod's cgroup in every hierarchy and reports whether it was absent before. In
// v1's cpuset hierarchy a new cgroup has no CPUs and no memory nodes. EnsureParent therefore copies
// the settings of the nearest ancestor that has some.
func (m *Manager) EnsureParent(ctx context.Context, path string) (created bool, err error) {
	if err := checkPath(path); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	created = !m.exists(path)
	if m.options.Driver == Systemd && created {
		err = m.startSlice(path)
	} else {
		err = m.makeDirs(path)
	}
	if err != nil {
		return false, fmt.Errorf("make cgroup %s: %w", path, err)
	}
	return created, nil
}

// EnsureDefault makes the default parent if it is absent, and marks it with the owner then.
func (m *Manager) EnsureDefault(ctx context.Context, owner string) error {
	if m.keepsDefault() {
		return nil
	}
	created, err := m.EnsureParent(ctx, m.options.DefaultParent)
	if err != nil || !created {
		return err
	}
	return m.Mark(m.options.DefaultParent, owner)
}

// RemoveDefault removes the default parent if EnsureDefault made it for the owner and no cgroup is
// below it.
func (m *Manager) RemoveDefault(owner string) error {
	if m.keepsDefault() {
		return nil
	}
	for _, dir := range m.mode.dirs(m.options.DefaultParent) {
		if !marked(dir, owner) {
			continue
		}
		// A cgroup with others below is busy, and one with processes too.
		if err := unix.Rmdir(dir); err != nil && !gone(err) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// keepsDefault reports whether the default parent is not Mica's to make: systemd makes its slices
// itself, and the root exists.
func (m *Manager) keepsDefault() bool {
	return m.options.Driver == Systemd || path.Clean("/"+m.options.DefaultParent) == "/"
}

// exists reports whether the cgroup exists in any hierarchy.
func (m *Manager) exists(path string) bool {
	return slices.ContainsFunc(m.mode.dirs(path), func(dir string) bool {
		_, err := os.Stat(dir)
		return err == nil
	})
}

func (m *Manager) makeDirs(path string) error {
	if m.mode.V2 {
		return fs2.CreateCgroupPath(m.mode.dir("", path), &cgroups.Cgroup{Resources: &cgroups.Resources{}})
	}
	if dir := m.mode.dir("cpuset", path); dir != "" {
		// -1 means "no process" in the library.
		if err := (&cgroupsv1.CpusetGroup{}).ApplyDir(dir, &cgroups.Resources{}, -1); err != nil {
			return err
		}
	}
	for _, dir := range m.mode.dirs(path) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// RemoveParent removes a cgroup and everything below it from every hierarchy. It is idempotent. If
// the cgroup still holds processes after five seconds, or when ctx ends, it returns
// ErrFailedPrecondition and the cgroup stays.
func (m *Manager) RemoveParent(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	var err error
	if m.options.Driver == Systemd && m.exists(path) {
		err = m.stopSlice(path)
	}
	if err == nil {
		err = m.removeDirs(ctx, path)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

func (m *Manager) removeDirs(ctx context.Context, path string) error {
	return retry(ctx, func() (bool, error) {
		busy := false
		for _, dir := range m.mode.dirs(path) {
			switch err := removeTree(dir); {
			case errors.Is(err, unix.EBUSY):
				busy = true
			case err != nil:
				return false, err
			}
		}
		return !busy, nil
	}, func() error {
		pids, _ := m.pids(path)
		return fmt.Errorf("%d processes left %v: %w", len(pids), firstPids(pids), errdefs.ErrFailedPrecondition)
	})
}

func firstPids(pids []int) []int { return pids[:min(len(pids), 8)] }

// retry calls f with growing pauses until it is done or fails. If ctx ends first, it returns the
// result of late.
func retry(ctx context.Context, f func() (done bool, err error), late func() error) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		done, err := f()
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return late()
		case <-timer.C:
		}
	}
}

// removeTree removes a cgroup directory, after those below it. The files in it belong to the kernel
// and disappear with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !gone(err) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// gone reports whether err means that the cgroup does not exist. Reads from a cgroup that is being
// removed return ENODEV. A path that is too long for the kernel names nothing.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENAMETOOLONG)
}

// Pids returns all processes in a cgroup and below, in any hierarchy, sorted. It returns
// ErrNotFound if the cgroup does not exist.
func (m *Manager) Pids(path string) ([]int, error) {
	if !m.exists(path) {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return m.pids(path)
}

// pids is Pids, but returns no processes for a cgroup that does not exist.
func (m *Manager) pids(path string) ([]int, error) {
	var out []int
	for _, dir := range m.mode.dirs(path) {
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err != nil || !e.IsDir() {
				return err
			}
			pids, err := readPids(filepath.Join(p, "cgroup.procs"))
			out = append(out, pids...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Members returns the processes in a cgroup and below, sorted, as one hierarchy has them: the first
// in which the cgroup exists. For a count it serves as well as Pids, and costs a fraction on v1. It
// returns ErrNotFound if the cgroup does not exist.
func (m *Manager) Members(path string) ([]int, error) {
	for _, controller := range []string{"pids", "memory", "cpuacct"} {
		dir := m.mode.dir(controller, path)
		if dir == "" {
			continue
		}
		pids, err := members(dir, nil)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
		}
		slices.Sort(pids)
		return slices.Compact(pids), nil
	}
	return m.Pids(path)
}

// members appends the processes of a cgroup directory and those below to pids. A directory with two
// links has none below it, so that it need not be listed.
func members(dir string, pids []int) ([]int, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return pids, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	own, err := readPids(dir + "/cgroup.procs")
	pids = append(pids, own...)
	if err != nil || st.Nlink == 2 {
		return pids, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		return pids, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if pids, err = members(dir+"/"+e.Name(), pids); err != nil && !gone(err) {
			return pids, err
		}
	}
	if gone(err) {
		err = nil
	}
	return pids, err
}

func readPids(file string) ([]int, error) {
	text, err := os.ReadFile(file)
	if gone(err) || errors.Is(err, unix.EOPNOTSUPP) { // the latter in a threaded v2 cgroup
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, line := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if pid != 0 { // 0 means a process outside this PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// KillAll kills every process in a cgroup and below and returns when all have exited. If some have
// not exited within five seconds, or before ctx ends, it returns ErrDeadlineExceeded.
func (m *Manager) KillAll(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	err := retry(ctx, func() (bool, error) { return m.killOnce(path) }, func() error {
		pids, _ := m.pids(path)
		return fmt.Errorf("%d processes left %v: %w", len(pids), firstPids(pids), context.DeadlineExceeded)
	})
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	return nil
}

// killOnce sends SIGKILL to all processes. done is true if there were none. On v2 the kernel kills
// them atomically (cgroup.kill, Linux 5.14). On v1 the freezer keeps them from forking meanwhile,
// and the signal takes effect at the thaw. killOnce also thaws processes that another program has
// frozen.
func (m *Manager) killOnce(path string) (done bool, err error) {
	pids, err := m.pids(path)
	if err != nil || len(pids) == 0 {
		return err == nil, err
	}
	if m.mode.V2 && os.WriteFile(filepath.Join(m.mode.dir("", path), "cgroup.kill"), []byte("1"), 0) == nil {
		return false, nil
	}
	if dir := m.mode.dir("freezer", path); dir != "" && !m.mode.V2 {
		// If this fails, processes can fork meanwhile. The next call finds the new ones.
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("FROZEN"), 0)
		defer func() { err = errors.Join(err, m.release(path, pids)) }()
		if pids, err = m.pids(path); err != nil {
			return false, err
		}
	}
	return false, killPids(pids)
}

// startSlice lets systemd make a pod's slice. systemd makes the parents too.
func (m *Manager) startSlice(p string) error {
	cg := unitConfig(p)
	if m.mode.V2 {
		manager, err := systemd.NewUnifiedManager(cg, m.mode.dir("", p))
		if err != nil {
			return err
		}
		return manager.Apply(-1)
	}
	manager, err := systemd.NewLegacyManager(cg, m.v1Paths(p))
	if err != nil {
		return err
	}
	return manager.Apply(-1)
}

func (m *Manager) stopSlice(p string) error {
	cg := unitConfig(p)
	if m.mode.V2 {
		manager, err := systemd.NewUnifiedManager(cg, m.mode.dir("", p))
		if err != nil {
			return err
		}
		return manager.Destroy()
	}
	manager, err := systemd.NewLegacyManager(cg, m.v1Paths(p))
	if err != nil {
		return err
	}
	return manager.Destroy()
}

// unitConfig describes a slice or a container's scope in the library's form. The parent is the
// slice whose path is one element shorter. A scope's name is split into its prefix and the rest.
func unitConfig(p string) *cgroups.Cgroup {
	cg := &cgroups.Cgroup{
		Name: path.Base(p), Parent: path.Base(path.Dir(p)), Systemd: true,
		Resources: &cgroups.Resources{SkipDevices: true},
	}
	if cg.Parent == "/" {
		cg.Parent = "-.slice"
	}
	if scope, ok := strings.CutSuffix(cg.Name, ".scope"); ok {
		cg.ScopePrefix, cg.Name, _ = strings.Cut(scope, "-")
	}
	return cg
}

// v1Paths maps each v1 controller to the cgroup's directory.
func (m *Manager) v1Paths(path string) map[string]string {
	paths := map[string]string{}
	for controller := range m.mode.Hierarchies {
		paths[controller] = m.mode.dir(controller, path)
	}
	return paths
}
