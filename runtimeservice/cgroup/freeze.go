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

// Freeze stops every process in a cgroup and below and returns when all have
// stopped, or when ctx ends. What Freeze has begun Thaw undoes, also after an
// error. A cgroup that does not exist is ErrNotFound, a host that cannot freeze
// ErrFailedPrecondition.
func (m *Manager) Freeze(ctx context.Context, path string) error {
	f, err := m.freezer(path)
	if err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", path, err)
	}
	err = retry(ctx, func() (bool, error) {
		// On v1 a process that was just being born or moved can escape: what
		// is written again counts for it as well.
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

// Thaw lets the processes of a frozen cgroup go on. One that is not frozen, or
// no longer there, is no error.
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

// Frozen says whether somebody has asked for the cgroup to be frozen. One that
// does not exist is ErrNotFound.
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

// freezer is the kernel's freezer of one cgroup: v1's hierarchy of its own or
// v2's cgroup.freeze.
type freezer struct {
	asked        string // file that takes what is wanted
	freeze, thaw string // and what is written to it
	thawed       string // what it says when nobody wants it frozen
	state        string // file that says what is
	done         string // a line of it when all processes have stopped
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
