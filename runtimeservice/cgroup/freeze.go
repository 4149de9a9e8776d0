package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Freeze freezes every process in a cgroup and below. It returns when all are frozen or ctx ends.
// Thaw undoes Freeze, also after an error. Freeze returns ErrNotFound if the cgroup does not exist
// and ErrFailedPrecondition if the host cannot freeze.
func (m *Manager) Freeze(ctx context.Context, path string) error {
	f, err := m.freezer(path)
	if err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", path, err)
	}
	err = retry(ctx, func() (bool, error) {
		// On v1, a process that is being forked or moved can escape the freezer. Writing the state
		// again freezes it too.
		if err := f.write(f.freeze); err != nil {
			return false, err
		}
		return f.frozen()
	}, func() error { return fmt.Errorf("processes still run: %w", ctx.Err()) })
	if err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", path, err)
	}
	return nil
}

// Thaw thaws a frozen cgroup. It returns nil if the cgroup is not frozen or does not exist.
func (m *Manager) Thaw(path string) error {
	f, err := m.freezer(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = f.write(f.thaw)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}

// Frozen reports whether the cgroup is set to be frozen, by any program. It returns ErrNotFound if
// the cgroup does not exist.
func (m *Manager) Frozen(path string) (bool, error) {
	f, err := m.freezer(path)
	if err != nil {
		return false, fmt.Errorf("read freezer of cgroup %s: %w", path, err)
	}
	text, err := os.ReadFile(f.asked)
	if err != nil {
		return false, fmt.Errorf("read freezer of cgroup %s: %w", path, f.failure(err))
	}
	return strings.TrimSpace(string(text)) != f.thawed, nil
}

// FrozenBy returns the topmost of the cgroup and those above it that somebody has
// asked to be frozen; "" if there is none, or no freezer. Cgroups that do not exist
// are passed over.
func (m *Manager) FrozenBy(path string) (string, error) {
	by := ""
	for p := filepath.Clean(path); p != "/" && p != "."; p = filepath.Dir(p) {
		frozen, err := m.Frozen(p)
		switch {
		case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
		case err != nil:
			return "", err
		case frozen:
			by = p
		}
	}
	return by, nil
}

// freezer describes the kernel's freezer of one cgroup: the freezer hierarchy on v1, cgroup.freeze
// on v2.
type freezer struct {
	asked        string // file for the wanted state
	freeze, thaw string // the states written to asked
	thawed       string // content of asked if it is not set to be frozen
	state        string // file with the actual state
	done         string // line in state once all processes are frozen
}

func (m *Manager) freezer(path string) (freezer, error) {
	if err := checkPath(path); err != nil {
		return freezer{}, err
	}
	dir := m.mode.dir("freezer", path)
	if dir == "" {
		return freezer{}, fmt.Errorf("no freezer controller on this node: %w", errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(dir); gone(err) {
		return freezer{}, errdefs.ErrNotFound
	} else if err != nil {
		return freezer{}, err
	}
	if m.mode.V2 {
		return freezer{
			asked: filepath.Join(dir, "cgroup.freeze"), freeze: "1", thaw: "0", thawed: "0",
			state: filepath.Join(dir, "cgroup.events"), done: "frozen 1",
		}, nil
	}
	file := filepath.Join(dir, "freezer.state")
	return freezer{asked: file, freeze: "FROZEN", thaw: "THAWED", thawed: "THAWED", state: file, done: "FROZEN"}, nil
}

func (f freezer) write(state string) error {
	return f.failure(os.WriteFile(f.asked, []byte(state), 0))
}

func (f freezer) frozen() (bool, error) {
	text, err := os.ReadFile(f.state)
	if err != nil {
		return false, f.failure(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == f.done {
			return true, nil
		}
	}
	return false, nil
}

func (f freezer) failure(err error) error {
	if gone(err) {
		return errors.Join(errdefs.ErrNotFound, err)
	}
	return err
}
