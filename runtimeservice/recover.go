package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec"
)

// recoveryWorkers is how many pods or containers are recovered at a time.
const recoveryWorkers = 16

// retellAge is how old an exit may be that nobody heard of and that is told once
// more. Whoever comes back later than that begins by listing.
const retellAge = time.Hour

// recover brings memory to what the records, the keeper and the disk say. What
// was half done is torn down, what nobody claims is swept away. Only what
// makes every pod unusable is an error; one bad record is logged and removed.
func (s *Service) recover(ctx context.Context) error {
	states, err := s.keeper.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the keeper what lives: %w", err)
	}
	alive := make(map[string]keeper.State, len(states))
	for _, st := range states {
		alive[st.ID] = st
	}
	drop := func(dir string, err error) error {
		klog.FromContext(ctx).Error(err, "Record cannot be used and is removed", "record", dir)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove unusable record: %w", err)
		}
		return nil
	}
	if err := s.loadPods(ctx, drop); err != nil {
		return err
	}
	if err := s.loadContainers(ctx, drop); err != nil {
		return err
	}
	if err := s.recoverJobs(ctx); err != nil {
		return err
	}
	if len(s.pods.all()) > 0 {
		s.events.openGap(time.Now().Add(eventGap))
	}
	var group errgroup.Group
	group.SetLimit(recoveryWorkers)
	for _, c := range s.containers.all() {
		group.Go(func() error { s.recoverContainer(ctx, c, alive); return nil })
	}
	_ = group.Wait()
	for _, p := range s.pods.all() {
		group.Go(func() error { s.recoverPod(ctx, p, alive); return nil })
	}
	_ = group.Wait()
	s.sweep(ctx, alive)
	return nil
}

// unusableFunc is told of a record that cannot be loaded, and why.
type unusableFunc func(dir string, err error) error

// loadPods reads all pod records into the table.
func (s *Service) loadPods(_ context.Context, unusable unusableFunc) error {
	return eachRecord(s.podsDir(), unusable, func(dir string) error {
		var rec PodRecord
		if err := jsonfile.Read(filepath.Join(dir, recordFile), &rec); err != nil {
			return err
		}
		if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
			return errors.New("record of another pod")
		}
		if err := spec.ReserveSELinux(rec.SELinux); err != nil {
			return err
		}
		p := newPod(dir, rec)
		// A torn or missing state was never answered to anybody or belongs to
		// an earlier boot: the pod counts as half made.
		if err := jsonfile.Read(filepath.Join(dir, stateFile), &p.state); err != nil {
			p.state = PodState{Phase: PodCreating}
		}
		return s.pods.add(p)
	})
}

// loadContainers reads all container records into the table.
func (s *Service) loadContainers(ctx context.Context, unusable unusableFunc) error {
	return eachRecord(s.containersDir(), unusable, func(dir string) error {
		var rec ContainerRecord
		if err := jsonfile.Read(filepath.Join(dir, recordFile), &rec); err != nil {
			return err
		}
		if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
			return errors.New("record of another container")
		}
		if _, err := s.pods.get(rec.PodID); err != nil {
			return fmt.Errorf("its pod: %w", err)
		}
		c := newContainer(dir, rec)
		err := jsonfile.Read(filepath.Join(dir, stateFile), &c.state)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.state = ContainerState{Ready: true} // torn by a power cut, so of an earlier boot
		}
		if err := spec.ReserveSELinux(c.state.SELinux); err != nil {
			return err
		}
		if c.phase() == Exited {
			close(c.exited)
		} else {
			s.holdMounted(ctx, c)
		}
		return s.containers.add(c)
	})
}

// eachRecord calls load for every directory below root, and unusable for those
// that it has an error for; the sweep removes what such a record stood for.
func eachRecord(root string, unusable unusableFunc, load func(dir string) error) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if err := load(dir); err != nil {
			if err := unusable(dir, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverContainer settles one container. The ends of those that the keeper
// has come as events too, which find them settled.
func (s *Service) recoverContainer(ctx context.Context, c *Container, alive map[string]keeper.State) {
	log := klog.FromContext(ctx).WithValues("container", c.ID)
	ctx, op := s.journal.Begin(ctx, "recover container", s.subject(c))
	st, known := alive[c.ID]
	var err error
	switch phase := c.phase(); {
	case phase == Creating:
		err = s.locked(ctx, c, s.eraseContainer)
	case phase == Exited:
		// What the keeper still has was not released, which follows the telling.
		if st := c.snapshot(); known || st.Untold && time.Since(st.Finished) < retellAge {
			s.retellExit(c)
		}
	case c.snapshot().BootID != s.bootID:
		err = s.recordExit(c, keeper.Exit{Code: exitUnknown, At: time.Now(), Reason: "the node was restarted while the container ran"})
		if err == nil {
			err = c.update(func(st *ContainerState) error { st.Reason = reasonRebooted; return nil })
		}
	case !known && c.unstarted(): // the keeper hears of it at its start
	case !known:
		err = s.recordExit(c, lostExit("the container ended while neither daemon nor keeper ran"))
	case st.Exit != nil:
		err = s.recordExit(c, *st.Exit)
	case phase == Created:
		err = s.recoverStart(ctx, c, st.Pid)
	}
	if err == nil && c.phase() == Exited {
		err = s.locked(ctx, c, func(ctx context.Context, c *Container) error {
			return errors.Join(c.recordUntold(), s.tearDownContainer(ctx, c))
		})
	}
	if op.End(err); err != nil {
		log.Error(err, "Container is not fully recovered; its removal tries again")
	}
}

// retellExit tells once more of an exit that the daemon before this one may not
// have told.
func (s *Service) retellExit(c *Container) {
	if pod, err := s.pods.get(c.PodID); err == nil {
		s.tellStopped(c, pod)
	}
}

// recoverStart notes the start of a container that was started, but whose
// start was not recorded when the daemon died.
func (s *Service) recoverStart(ctx context.Context, c *Container, pid int) error {
	h, err := s.handler(c.Handler)
	if err != nil {
		return err
	}
	state, err := h.State(ctx, c.ID)
	if err != nil {
		return fmt.Errorf("ask for the state of container %s: %w", c.ID, err)
	}
	if state.Status != specs.StateRunning {
		return nil
	}
	if err := c.update(func(st *ContainerState) error { st.Started, st.Pid = time.Now(), pid; return nil }); err != nil {
		return err
	}
	if pod, err := s.pods.get(c.PodID); err == nil {
		s.emit(c.ID, pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	return nil
}

func (s *Service) locked(ctx context.Context, c *Container, f func(context.Context, *Container) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	if err := c.op.lock(ctx, "recover container "+c.ID); err != nil {
		return err
	}
	defer c.op.unlock()
	return f(ctx, c)
}

// recoverPod settles one pod. Its containers are settled already.
func (s *Service) recoverPod(ctx context.Context, p *Pod, alive map[string]keeper.State) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	ctx, op := s.journal.Begin(ctx, "recover pod", p.subject())
	err := p.op.lock(ctx, "recover pod "+p.ID)
	if err == nil {
		defer p.op.unlock()
		err = s.settlePod(ctx, p, alive)
	}
	if op.End(err); err != nil {
		klog.FromContext(ctx).Error(err, "Pod is not fully recovered; its removal tries again", "pod", p.ID)
	}
}

func (s *Service) settlePod(ctx context.Context, p *Pod, alive map[string]keeper.State) error {
	st := p.snapshot()
	switch {
	case st.Phase == PodCreating, p.RestoredFrom != "" && !st.Restored:
		return s.erasePod(ctx, p)
	case st.Phase == PodReady && st.BootID == s.bootID && s.podStands(p, alive):
		return nil
	case st.Phase == PodNotReady && !exists(s.podStateDir(p.ID)):
		return nil
	}
	if err := p.update(func(st *PodState) error { st.Phase, st.InitPid = PodNotReady, 0; return nil }); err != nil {
		return err
	}
	// A stop that was under way may not have been told either.
	s.emit(p.ID, p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return s.tearDownPod(ctx, p)
}

// podStands says whether what a ready pod promises is still there.
func (s *Service) podStands(p *Pod, alive map[string]keeper.State) bool {
	dir := s.podStateDir(p.ID)
	if !exists(dir) {
		return false
	}
	if p.userNamespace() != nil && !isNamespace(filepath.Join(dir, podns.User)) {
		return false
	}
	if !p.hostNetwork() && !isNamespace(filepath.Join(dir, podns.Net)) {
		return false
	}
	if !p.hostIPC() && !isNamespace(filepath.Join(dir, podns.IPC)) {
		return false
	}
	return p.snapshot().InitPid == 0 || alive[p.ID].Running
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isNamespace says whether a kernel namespace is mounted at path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
