package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"golang.org/x/sys/unix"
)

// deleteEnded removes the runtime's state of a container whose first process has exited. Unless the
// keeper can remove it itself, it has the runtime delete the container: its state, its cgroup and the
// processes that are left in the cgroup. With --force, runc from 1.2 on waits at least
// 100 ms for the end of such a container. Force is therefore only the second try.
// It is needed if the runtime takes the container for running or paused, as in a frozen cgroup, if
// the cgroup still has processes, or if the runtime's state is incomplete. A runtime that did not
// end in time is not tried again.
func (s *Server) deleteEnded(ctx context.Context, rec record) error {
	if s.removeState(rec) {
		return nil
	}
	err := s.mustRun(ctx, command{rec: rec, args: []string{"delete", rec.ID}})
	if e := new(wire.Error); err == nil || errors.As(err, &e) && e.Code == wire.CodeDeadline {
		return err
	}
	return s.forceDelete(ctx, rec)
}

// removeState removes the directory of the runtime's state, where Create.RemoveState says that this is
// all. It returns false if the runtime's delete must do it: an entry that is a directory could be a
// mount point.
func (s *Server) removeState(rec record) bool {
	dir := rec.stateDir()
	if !rec.Create.RemoveState || dir == "" {
		return false
	}
	err := s.spare.lend(func() error { return removeFlat(dir) })
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// removeFlat removes a directory with its files. If an entry is a directory, it removes nothing and
// returns an error.
func removeFlat(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("remove %s: %w", dir, unix.ENOTDIR)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			return fmt.Errorf("remove %s: %s is a directory", dir, e.Name())
		}
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(dir)
}

// forceDelete has the runtime delete a container in any state. A container that it does not know, or
// of which it has lost a part of the state, is no error; forceDelete removes the other part.
func (s *Server) forceDelete(ctx context.Context, rec record) error {
	err := s.mustRun(ctx, command{rec: rec, args: []string{"delete", "--force", rec.ID}})
	if err == nil || !absent(err) {
		return err
	}
	if dir := rec.stateDir(); dir != "" {
		_ = s.spare.lend(func() error { return removeFlat(dir) }) // the directory is usually absent, too
	}
	return nil
}

// absent reports whether a runtime's error means that the container, or a file of its state, does not
// exist. Runtimes have no exit code for it.
func absent(err error) bool {
	text := err.Error()
	return slices.ContainsFunc([]string{
		"does not exist",            // runc
		"No such file or directory", // crun
		"error opening file",        // crun 1.8, of config.json
		"cannot read the file",      // crun 1.28
	}, func(s string) bool { return strings.Contains(text, s) })
}

// unmake cleans up after a failed creation.
func (s *Server) unmake(ctx context.Context, c *container) error {
	err := s.forceDelete(context.WithoutCancel(ctx), c.rec)
	s.forget(c)
	c.unlock()
	return err
}

func (s *Server) remove(ctx context.Context, id string) error {
	c, err := s.find(id)
	if err != nil {
		return nil // also while it is being created: the creator removes it after a failure
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if s.isGone(c) {
		return nil
	}
	if err := s.end(ctx, c); err != nil {
		return err
	}
	if !c.rec.Init {
		if err := s.deleteEnded(ctx, c.rec); err != nil {
			return err
		}
	}
	s.forget(c)
	return nil
}

func (s *Server) isGone(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[c.id()] != c
}

// endTimeout bounds the wait for the death of a killed process.
const endTimeout = 15 * time.Second

// killAgain is the interval of SIGKILLs to a process that must end. Its pidfd may become known only
// after the first one.
const killAgain = 100 * time.Millisecond

// end kills the container's init and waits for its exit record. The record needs the cgroup, which
// the runtime's delete removes.
func (s *Server) end(ctx context.Context, c *container) error {
	t := time.NewTimer(endTimeout)
	defer t.Stop()
	again := time.NewTicker(killAgain)
	defer again.Stop()
	for {
		c.mu.Lock()
		if c.exit == nil && c.pidfd >= 0 {
			_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
		}
		c.mu.Unlock()
		select {
		case <-c.gone:
			return nil
		case <-again.C:
		case <-t.C:
			return wire.Errorf(wire.CodeDeadline, "delete container %s: its init does not exit after SIGKILL", c.id())
		case <-ctx.Done():
			return wire.Errorf(wire.CodeDeadline, "delete container %s: %v", c.id(), ctx.Err())
		}
	}
}

// removeStale removes a container whose creation an earlier keeper did not finish.
func (s *Server) removeStale(rec record) {
	ctx, cancel := context.WithTimeout(context.Background(), defaultTimeout)
	defer cancel()
	if !rec.Init {
		if err := s.forceDelete(ctx, rec); err != nil {
			s.logf("container %s: remove half-made container: %v", rec.ID, err)
		}
	}
	if err := os.RemoveAll(s.path(rec.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logf("container %s: %v", rec.ID, err)
	}
}
