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
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/journal"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
)

const jobFile = "job.json"

// criuGrace is how long a CRIU whose runtime was killed may go on: it ends by
// itself once it has let go of the processes in good order.
const criuGrace = 15 * time.Second

// programGrace is how long a started container may take to run its own program.
const programGrace = 10 * time.Second

// jobRecord is what has to be undone of a checkpoint that does not end well. It
// is written before the first side effect.
type jobRecord struct {
	// Containers are those that are checkpointed, Cgroups theirs, which may be
	// frozen.
	Containers, Cgroups []string
	// Files are absolute paths of what is being written.
	Files []string
}

// job is a checkpoint under way: a directory of its own, which takes what is
// captured, and the locks of its containers.
type job struct {
	jobRecord
	dir        string
	containers []*Container
}

func (s *Service) jobsDir() string { return filepath.Join(s.opts.DataDir, "cri", "checkpoints") }

// beginJob locks the containers, which must run, and makes the job's directory.
// files says what will be written, given the job's own name.
func (s *Service) beginJob(ctx context.Context, containers []*Container, files func(name string) []string) (_ *job, err error) {
	j := &job{dir: filepath.Join(s.jobsDir(), newID()[:16])}
	defer func() {
		if err != nil {
			j.unlock()
		}
	}()
	// In one order, so that no two jobs wait for each other.
	ordered := slices.SortedFunc(slices.Values(containers), func(a, b *Container) int { return cmp.Compare(a.ID, b.ID) })
	for _, c := range ordered {
		if err := c.op.lock(ctx, "checkpoint container "+c.ID); err != nil {
			return nil, err
		}
		j.containers = append(j.containers, c)
		j.Containers = append(j.Containers, c.ID)
		j.Cgroups = append(j.Cgroups, s.containerCgroup(c))
		if err := c.require("checkpoint", Running); err != nil {
			return nil, err
		}
		if err := awaitProgram(ctx, c.snapshot().Pid, c.waiter); err != nil {
			return nil, err
		}
		frozen, err := s.cgroups.Frozen(s.containerCgroup(c))
		if err == nil && frozen {
			err = fmt.Errorf("container %q (%s) is paused: %w", c.config().GetMetadata().GetName(), c.ID, errdefs.ErrFailedPrecondition)
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
		return nil, errors.Join(fmt.Errorf("record checkpoint: %w", err), s.forgetJob(j))
	}
	return j, nil
}

// program is an executable file of this node's.
type program struct{ dev, ino uint64 }

// programOf is what a process runs, zero if it is gone.
func programOf(pid int) program {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join("/proc", strconv.Itoa(pid), "exe"), &st); err != nil {
		return program{}
	}
	return program{uint64(st.Dev), st.Ino}
}

// awaitProgram waits until a process that was started a moment ago runs
// something else than waiter: the OCI runtime's start can return before, and
// CRIU cannot dump what is on no mount of the container's. One that goes on as
// waiter for longer was meant to.
func awaitProgram(ctx context.Context, pid int, waiter program) error {
	patience := time.Now().Add(programGrace)
	for pause := time.Millisecond; waiter != (program{}) && programOf(pid) == waiter && time.Now().Before(patience); pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the program of process %d: %w", pid, ctx.Err())
		case <-time.After(pause):
		}
	}
	return nil
}

func (j *job) unlock() {
	for _, c := range j.containers {
		c.op.unlock()
	}
	j.containers = nil
}

// freeze stops the processes of all containers before it returns.
func (s *Service) freeze(ctx context.Context, j *job) error {
	journal.Enter(ctx, "freeze")
	var group errgroup.Group
	for _, cgroup := range j.Cgroups {
		group.Go(func() error { return s.cgroups.Freeze(ctx, cgroup) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return failpoint.Hit("checkpoint-frozen")
}

// thaw lets the containers go on. It may be called again.
func (s *Service) thaw(j *job) error {
	var errs []error
	for _, cgroup := range j.Cgroups {
		errs = append(errs, s.cgroups.Thaw(cgroup))
	}
	return errors.Join(errs...)
}

// endJob undoes what is to be undone of a job, and gives its containers back.
// failed says that what it was to write is not wanted.
func (s *Service) endJob(ctx context.Context, j *job, failed bool) error {
	defer j.unlock()
	var errs []error
	if failed {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
		defer cancel()
		errs = append(errs, awaitUsers(ctx, j.dir, criuGrace))
	}
	errs = append(errs, s.thaw(j))
	if failed {
		errs = append(errs, removeFiles(j.Files))
	}
	return errors.Join(append(errs, s.forgetJob(j))...)
}

func (s *Service) forgetJob(j *job) error {
	err := overlay.RemoveTree(j.dir)
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

// awaitUsers waits until no OCI runtime and no CRIU works in dir any more, and
// kills those that still do after grace.
func awaitUsers(ctx context.Context, dir string, grace time.Duration) error {
	patience := time.Now().Add(grace)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids := usersOf(dir)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(patience) {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL) // gone meanwhile, or found again
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of CRIU, processes %v: %w", pids, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// usersOf returns the other processes that dump into dir.
func usersOf(dir string) []int {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err == nil && pid != os.Getpid() && dumpsInto(filepath.Join("/proc", p.Name()), dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dumpsInto recognises who dumps by the directory that both CRIU and the OCI
// runtime keep open, and a runtime that has not got so far by its command line.
func dumpsInto(proc, dir string) bool {
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err == nil && strings.Contains(string(line), "\x00--image-path\x00"+dir+"/") {
		return true
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		link := filepath.Join(proc, "fd", fd.Name())
		target, err := os.Readlink(link)
		if err != nil || target != dir && !strings.HasPrefix(target, dir+"/") {
			continue
		}
		if st, err := os.Stat(link); err == nil && st.IsDir() {
			return true
		}
	}
	return false
}

// recoverJobs ends the checkpoints that were under way when the daemon died:
// their containers go on, and nothing is left of what was being written. It
// locks their containers before one is looked at, since a frozen one does not even
// die, and ends the checkpoints in the background, where a CRIU that is still at work
// is waited for.
func (s *Service) recoverJobs(ctx context.Context) error {
	entries, err := os.ReadDir(s.jobsDir())
	if err != nil {
		return fmt.Errorf("read checkpoints under way: %w", err)
	}
	log := klog.FromContext(ctx)
	for _, e := range entries {
		j := &job{dir: filepath.Join(s.jobsDir(), e.Name())}
		if err := jsonfile.Read(filepath.Join(j.dir, jobFile), &j.jobRecord); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Error(err, "Record of a checkpoint cannot be read", "directory", j.dir)
		}
		log.Info("Ending a checkpoint that was under way", "containers", j.Containers)
		s.jobs.Store(e.Name(), true)
		for _, id := range j.Containers {
			if c, err := s.containers.get(id); err == nil && c.op.lock(ctx, "recover container "+id) == nil {
				j.containers = append(j.containers, c)
			}
		}
		// Now, since by the time that a CRIU has ended another checkpoint may be
		// there.
		if err := removeFiles(j.Files); err != nil {
			log.Error(err, "Files of a checkpoint that was under way stay", "directory", j.dir)
		}
		j.Files = nil
		end := func() {
			if err := s.endJob(context.WithoutCancel(ctx), j, true); err != nil {
				log.Error(err, "Checkpoint is not undone in full", "directory", j.dir)
			}
		}
		s.background.Go(end)
	}
	return nil
}
