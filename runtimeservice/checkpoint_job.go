package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/state"
)

const jobFile = "job.json"

// jobRecord is what has to be undone after a failed checkpoint. It is written before the first side
// effect.
type jobRecord struct {
	// Containers are the IDs of the containers to checkpoint, Cgroups their cgroups, which may be
	// frozen.
	Containers, Cgroups []string
	// Files are the absolute paths of the files being written.
	Files []string
}

// job is a running checkpoint: its own directory for what is captured, and the locks of its
// containers.
type job struct {
	jobRecord
	dir        string
	containers []*Container
}

// beginJob locks the containers, which must be running, and makes the job's directory. files
// returns the files that will be written, for the name of the job.
func (s *Service) beginJob(ctx context.Context, containers []*Container, files func(name string) []string) (_ *job, err error) {
	j := &job{dir: filepath.Join(s.paths.Checkpoints(), newID()[:16])}
	defer func() {
		if err != nil {
			j.unlock()
		}
	}()
	// Always in the same order, so that two jobs cannot deadlock.
	ordered := slices.SortedFunc(slices.Values(containers), func(a, b *Container) int { return cmp.Compare(a.ID(), b.ID()) })
	for _, c := range ordered {
		if err := c.op.Lock(ctx, "checkpoint container "+c.ID()); err != nil {
			return nil, err
		}
		j.containers = append(j.containers, c)
		j.Containers = append(j.Containers, c.ID())
		j.Cgroups = append(j.Cgroups, s.containerCgroup(c))
		if err := c.Require("checkpoint", state.Running); err != nil {
			return nil, err
		}
		if err := checkpoint.AwaitExec(ctx, c.State().Pid, c.waiter); err != nil {
			return nil, err
		}
		frozen, err := s.cgroups.Frozen(s.containerCgroup(c))
		if err == nil && frozen {
			err = fmt.Errorf("container %q (%s) is paused: %w", c.Config().GetMetadata().GetName(), c.ID(), errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return nil, err
		}
	}
	j.Files = files(filepath.Base(j.dir))
	s.jobs.Store(filepath.Base(j.dir), true)
	err = os.Mkdir(j.dir, 0o700)
	if err == nil {
		err = jsonfile.Write(filepath.Join(j.dir, jobFile), j.jobRecord)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record checkpoint: %w", err), s.forgetJob(context.WithoutCancel(ctx), j))
	}
	return j, nil
}

func (j *job) unlock() {
	for _, c := range j.containers {
		c.op.Unlock()
	}
	j.containers = nil
}

// freeze stops the processes of all containers before it returns.
func (s *Service) freeze(ctx context.Context, j *job) error {
	operations.Enter(ctx, "freeze")
	var group errgroup.Group
	for _, cgroup := range j.Cgroups {
		group.Go(func() error { return s.cgroups.Freeze(ctx, cgroup) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return failpoint.Hit("checkpoint-frozen")
}

// thaw lets the containers continue. It may be called again.
func (s *Service) thaw(j *job) error {
	var errs []error
	for _, cgroup := range j.Cgroups {
		errs = append(errs, s.cgroups.Thaw(cgroup))
	}
	return errors.Join(errs...)
}

// endJob cleans up after a job and unlocks its containers. If failed is set, it also waits for CRIU
// and removes the job's files.
func (s *Service) endJob(ctx context.Context, j *job, failed bool) error {
	defer j.unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
	defer cancel()
	var errs []error
	if failed {
		errs = append(errs, checkpoint.AwaitDumps(ctx, j.dir))
	}
	errs = append(errs, s.thaw(j))
	if failed {
		errs = append(errs, removeFiles(j.Files))
	}
	return errors.Join(append(errs, s.forgetJob(ctx, j))...)
}

func (s *Service) forgetJob(ctx context.Context, j *job) error {
	err := overlay.RemoveTree(ctx, j.dir)
	if err == nil {
		s.jobs.Delete(filepath.Base(j.dir))
	}
	return err
}

func removeFiles(files []string) error {
	var errs []error
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// recoverJobs ends the checkpoints that were running when the previous daemon died: their
// containers continue, and unfinished files are removed. It locks the containers before any
// recovery looks at them, since a frozen container cannot even be killed. It ends the checkpoints
// in the background, because a CRIU may still run.
func (s *Service) recoverJobs(ctx context.Context) error {
	entries, err := os.ReadDir(s.paths.Checkpoints())
	if err != nil {
		return fmt.Errorf("read running checkpoints: %w", err)
	}
	log := klog.FromContext(ctx)
	for _, e := range entries {
		j := &job{dir: filepath.Join(s.paths.Checkpoints(), e.Name())}
		if err := jsonfile.Read(filepath.Join(j.dir, jobFile), &j.jobRecord); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Error(err, "Cannot read record of a checkpoint", "directory", j.dir)
		}
		log.Info("Ending a checkpoint of the previous daemon", "containers", j.Containers)
		s.jobs.Store(e.Name(), true)
		for _, id := range j.Containers {
			if c, err := s.containers.Get(id); err == nil && c.op.Lock(ctx, "recover container "+id) == nil {
				j.containers = append(j.containers, c)
			}
		}
		// Not in the background: by the time that CRIU has ended, another checkpoint may use these
		// paths.
		if err := removeFiles(j.Files); err != nil {
			log.Error(err, "Removing files of an unfinished checkpoint failed", "directory", j.dir)
		}
		j.Files = nil
		end := func() {
			if err := s.endJob(context.WithoutCancel(ctx), j, true); err != nil {
				log.Error(err, "Cleaning up after an unfinished checkpoint failed", "directory", j.dir)
			}
		}
		s.background.Go(end)
	}
	return nil
}
