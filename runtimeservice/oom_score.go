package runtimeservice

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// oomScorePasses is the maximum number of searches for processes that were forked while the others
// got their new score.
const oomScorePasses = 10

// adjustOOMScore sets the oom_score_adj of the container's first process, and of the others with
// the same value. Processes that chose another value keep it. If the host does not let the daemon
// lower scores, a lower one has no effect, as at the container's creation.
func (s *Service) adjustOOMScore(c *Container, score int) error {
	old, err := readOOMScore(c.State().Pid)
	if err != nil || old == score {
		return err
	}
	return s.moveOOMScore(c, old, score)
}

// moveOOMScore sets score for every process of the container whose score is old.
func (s *Service) moveOOMScore(c *Container, old, score int) error {
	for range oomScorePasses {
		pids, err := s.cgroups.Pids(s.containerCgroup(c))
		if errdefs.IsNotFound(err) {
			return nil // it has just ended
		}
		if err != nil {
			return err
		}
		changed := false
		for _, pid := range pids {
			did, err := s.changeOOMScore(pid, old, score)
			if err != nil {
				return err
			}
			changed = changed || did
		}
		if !changed {
			return nil
		}
	}
	return nil
}

// changeOOMScore changes the score of a process if it is the old one.
func (s *Service) changeOOMScore(pid, old, score int) (bool, error) {
	has, err := readOOMScore(pid)
	if err != nil || has != old {
		return false, err
	}
	err = os.WriteFile(oomScoreFile(pid), []byte(strconv.Itoa(score)), 0)
	switch {
	case err == nil:
		return true, nil
	case ended(err), errors.Is(err, fs.ErrPermission) && !s.host.RaiseRlimits:
		return false, nil
	}
	return false, fmt.Errorf("set oom_score_adj: %w", err)
}

// readOOMScore returns the score of a process, 0 if the process has exited.
func readOOMScore(pid int) (int, error) {
	text, err := os.ReadFile(oomScoreFile(pid))
	if ended(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	return strconv.Atoi(string(bytes.TrimSpace(text)))
}

func oomScoreFile(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }

// ended reports whether err is from reading a file of a process that has exited.
func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }
