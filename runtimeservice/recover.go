package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/state"
)

// settleWorkers limits how many objects are settled, or leftovers removed, at the same time.
const settleWorkers = 16

// republishAge is the maximum age of an exit whose event is sent again after a restart. Subscribers
// that return later begin with a list.
const republishAge = time.Hour

// facts are what the start knows in addition to the records.
type facts struct {
	alive map[string]keeper.State // the processes that the keeper supervises, by ID
}

// recovery is the remaining work for one pod or container after its state is settled. It runs under
// the object's lock, concurrently with requests.
type recovery struct {
	id   string
	lock *state.Lock
	on   operation
	do   func(context.Context) error
}

// recover loads the records, updates their state from the keeper, and returns the remaining work:
// recoveries of half-made or damaged objects, and leftovers to remove. It only asks the keeper for
// its list, and reads and writes records. So one pod that cannot be recovered does not delay the
// start.
func (s *Service) recover(ctx context.Context) ([]recovery, []leftover, error) {
	states, err := s.keeper.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the keeper what lives: %w", err)
	}
	f := facts{alive: make(map[string]keeper.State, len(states))}
	for _, st := range states {
		f.alive[st.ID] = st
	}
	if err := s.loadPods(ctx, s.setAside); err != nil {
		return nil, nil, err
	}
	if err := s.loadContainers(ctx, s.setAside); err != nil {
		return nil, nil, err
	}
	if err := s.recoverJobs(ctx); err != nil {
		return nil, nil, err
	}
	if len(s.pods.All()) > 0 {
		s.events.OpenGap()
	}
	// Containers first: a pod's tear-down waits for its containers' recoveries.
	work := append(settleAll(ctx, s.containers.All(), f, s.settleContainer), settleAll(ctx, s.pods.All(), f, s.settlePod)...)
	found, err := s.leftovers(f.alive)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Search for leftovers is incomplete")
	}
	return work, found, nil
}

// settleAll settles objects concurrently, and returns the remaining work.
func settleAll[T state.Object](ctx context.Context, objects []T, f facts, settle func(T, facts) (*recovery, error)) []recovery {
	found := make([]*recovery, len(objects))
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for i, obj := range objects {
		group.Go(func() error {
			var err error
			if found[i], err = settle(obj, f); err != nil {
				klog.FromContext(ctx).Error(err, "Updating the recorded state failed; the removal tries again", "id", obj.ID())
			}
			return nil
		})
	}
	_ = group.Wait()
	var todo []recovery
	for _, r := range found {
		if r != nil {
			todo = append(todo, *r)
		}
	}
	return todo
}

// settleContainer updates the container's state from the keeper. Exits that the keeper has are sent
// as events too; by then they are recorded.
func (s *Service) settleContainer(c *Container, f facts) (*recovery, error) {
	st, known := f.alive[c.ID()]
	var err error
	switch phase := c.Phase(); {
	case phase == state.Creating && known:
		return s.recoveryOf(c, s.recoverStateless), nil
	case phase == state.Creating:
		return s.recoveryOf(c, s.eraseContainer), nil
	case phase == state.Exited:
		// The daemon publishes the event before it deletes the container from the keeper.
		if st := c.State(); known || st.Undelivered && time.Since(st.Finished) < republishAge {
			s.republishExit(c)
		}
	case c.State().BootID != s.bootID:
		err = s.recordExit(c, keeper.Exit{Code: exitUnknown, At: time.Now(), Reason: "the node was restarted while the container ran"})
		if err == nil {
			err = c.Update(func(st *state.ContainerState) error { st.Reason = reasonRebooted; return nil })
		}
	case !known && c.unstarted(): // the keeper gets it when it starts
		return nil, nil
	case !known:
		err = s.recordExit(c, lostExit("the container ended while neither daemon nor keeper ran"))
	case st.Exit != nil:
		err = s.recordExit(c, *st.Exit)
	case s.suspects(c) != "":
		return s.recoveryOf(c, s.recoverDamaged), nil
	case phase == state.Created:
		return s.recoveryOf(c, func(ctx context.Context, c *Container) error { return s.recoverStart(ctx, c, st.Pid) }), nil
	}
	if err != nil || c.Phase() != state.Exited || !known && !exists(s.paths.Bundle(c.ID())) && !c.State().Undelivered && !c.hasCheckpoint() {
		return nil, err
	}
	return s.recoveryOf(c, func(ctx context.Context, c *Container) error {
		return errors.Join(c.recordUndelivered(), s.tearDownContainer(ctx, c))
	}), nil
}

func (s *Service) recoveryOf(c *Container, do func(context.Context, *Container) error) *recovery {
	return &recovery{
		id: c.ID(), lock: c.op, on: operation{"recover container", s.subject(c)},
		do: func(ctx context.Context) error { return do(ctx, c) },
	}
}

// republishExit publishes an exit again: the previous daemon may have died before it did.
func (s *Service) republishExit(c *Container) {
	if pod, err := s.pods.Get(c.PodID()); err == nil {
		c.publishing.Lock()
		defer c.publishing.Unlock()
		s.publishStopped(c, pod)
	}
}

// recoverStart records the start of a container if the previous daemon died after the start and
// before recording it. The caller holds c.op.
func (s *Service) recoverStart(ctx context.Context, c *Container, pid int) error {
	started, err := s.hasStarted(ctx, c)
	if err != nil || !started || c.Phase() != state.Created {
		return err
	}
	if err := c.Update(func(st *state.ContainerState) error { st.Started, st.Pid = time.Now(), pid; return nil }); err != nil {
		return err
	}
	if pod, err := s.pods.Get(c.PodID()); err == nil {
		s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	return nil
}

// hasStarted asks the OCI runtime whether the container's process was started.
func (s *Service) hasStarted(ctx context.Context, c *Container) (bool, error) {
	h, err := s.handler(c.Record().Handler)
	if err != nil {
		return false, err
	}
	status, err := h.State(ctx, c.ID())
	if err != nil {
		return false, fmt.Errorf("ask for the state of container %s: %w", c.ID(), err)
	}
	if status.Status == oci.StatePaused {
		return wasLetGo(h.Handler().Root, c.ID()), nil
	}
	return status.Status == specs.StateRunning, nil
}

// wasLetGo reports whether a container was started, from its directory below the OCI runtime's
// root. The process waits at the pipe exec.fifo, which runc and crun remove at the start.
func wasLetGo(root, id string) bool {
	dir := filepath.Join(root, id)
	return root != "" && exists(dir) && !exists(filepath.Join(dir, "exec.fifo"))
}

// settlePod updates the pod's state from the keeper and the disk. The pod's containers must be
// settled.
func (s *Service) settlePod(p *Pod, f facts) (*recovery, error) {
	st := p.State()
	recover := func(do func(context.Context, *Pod) error) *recovery {
		return &recovery{id: p.ID(), lock: p.op, on: operation{"recover pod", p.Subject()}, do: func(ctx context.Context) error { return do(ctx, p) }}
	}
	stands := s.podStands(p, f.alive)
	switch {
	case p.Record().RestoredFrom != "" && !st.Restored:
		return recover(s.erasePod), nil
	case st.Phase == state.PodCreating && stands && len(s.containersOf(p.ID())) > 0:
		// The pod was ready, since it has containers, and its state file is lost.
		return recover(s.recoverPodState), nil
	case st.Phase == state.PodCreating:
		return recover(s.erasePod), nil
	case st.Phase == state.PodReady && st.BootID == s.bootID && stands:
		if s.podLacks(p) == "" {
			return nil, nil
		}
		return recover(s.repairPod), nil
	case st.Phase == state.PodNotReady && !exists(s.paths.PodState(p.ID())):
		return nil, nil
	}
	if err := p.Update(func(st *state.PodState) error { st.Phase, st.InitPid = state.PodNotReady, 0; return nil }); err != nil {
		return nil, err
	}
	// The daemon may have died in a stop, before it published the event.
	s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return recover(s.tearDownPod), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isNamespace reports whether a namespace is pinned at path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// isMountPoint reports whether path is on a different file system than its parent.
func isMountPoint(path string) bool {
	var st, parent unix.Stat_t
	return unix.Lstat(path, &st) == nil && unix.Lstat(filepath.Dir(path), &parent) == nil && st.Dev != parent.Dev
}
