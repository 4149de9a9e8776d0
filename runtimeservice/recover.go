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
	"github.com/micarun/mica/runtimeservice/podns"
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
	lock *opLock
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
	if len(s.pods.all()) > 0 {
		s.events.OpenGap()
	}
	// Containers first: a pod's tear-down waits for its containers' recoveries.
	todo := append(settleAll(ctx, s.containers.all(), f, s.settleContainer), settleAll(ctx, s.pods.all(), f, s.settlePod)...)
	found, err := s.leftovers(f.alive)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Search for leftovers is incomplete")
	}
	return todo, found, nil
}

// settleAll settles objects concurrently, and returns the remaining work.
func settleAll[T object](ctx context.Context, objects []T, f facts, settle func(T, facts) (*recovery, error)) []recovery {
	found := make([]*recovery, len(objects))
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for i, obj := range objects {
		group.Go(func() error {
			var err error
			if found[i], err = settle(obj, f); err != nil {
				klog.FromContext(ctx).Error(err, "Updating the recorded state failed; the removal tries again", "id", obj.id())
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
	st, known := f.alive[c.ID]
	var err error
	switch phase := c.phase(); {
	case phase == Creating && known:
		return s.recoveryOf(c, s.recoverStateless), nil
	case phase == Creating:
		return s.recoveryOf(c, s.eraseContainer), nil
	case phase == Exited:
		// The daemon publishes the event before it deletes the container from the keeper.
		if st := c.snapshot(); known || st.Undelivered && time.Since(st.Finished) < republishAge {
			s.republishExit(c)
		}
	case c.snapshot().BootID != s.bootID:
		err = s.recordExit(c, keeper.Exit{Code: exitUnknown, At: time.Now(), Reason: "the node was restarted while the container ran"})
		if err == nil {
			err = c.update(func(st *ContainerState) error { st.Reason = reasonRebooted; return nil })
		}
	case !known && c.unstarted(): // the keeper gets it when it starts
		return nil, nil
	case !known:
		err = s.recordExit(c, lostExit("the container ended while neither daemon nor keeper ran"))
	case st.Exit != nil:
		err = s.recordExit(c, *st.Exit)
	case s.suspects(c) != "":
		return s.recoveryOf(c, s.recoverDamaged), nil
	case phase == Created:
		return s.recoveryOf(c, func(ctx context.Context, c *Container) error { return s.recoverStart(ctx, c, st.Pid) }), nil
	}
	if err != nil || c.phase() != Exited || !known && !exists(s.bundle(c.ID)) && !c.snapshot().Undelivered && !c.hasCheckpoint() {
		return nil, err
	}
	return s.recoveryOf(c, func(ctx context.Context, c *Container) error {
		return errors.Join(c.recordUndelivered(), s.tearDownContainer(ctx, c))
	}), nil
}

func (s *Service) recoveryOf(c *Container, do func(context.Context, *Container) error) *recovery {
	return &recovery{
		id: c.ID, lock: c.op, on: operation{"recover container", s.subject(c)},
		do: func(ctx context.Context) error { return do(ctx, c) },
	}
}

// republishExit publishes an exit again: the previous daemon may have died before it did.
func (s *Service) republishExit(c *Container) {
	if pod, err := s.pods.get(c.PodID); err == nil {
		s.publishStopped(c, pod)
	}
}

// recoverStart records the start of a container if the previous daemon died after the start and
// before recording it. The caller holds c.op.
func (s *Service) recoverStart(ctx context.Context, c *Container, pid int) error {
	started, err := s.hasStarted(ctx, c)
	if err != nil || !started || c.phase() != Created {
		return err
	}
	if err := c.update(func(st *ContainerState) error { st.Started, st.Pid = time.Now(), pid; return nil }); err != nil {
		return err
	}
	if pod, err := s.pods.get(c.PodID); err == nil {
		s.emit(c.ID, pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	return nil
}

// hasStarted asks the OCI runtime whether the container's process was started.
func (s *Service) hasStarted(ctx context.Context, c *Container) (bool, error) {
	h, err := s.handler(c.Handler)
	if err != nil {
		return false, err
	}
	state, err := h.State(ctx, c.ID)
	if err != nil {
		return false, fmt.Errorf("ask for the state of container %s: %w", c.ID, err)
	}
	if state.Status == oci.StatePaused {
		return wasLetGo(h.Handler().Root, c.ID), nil
	}
	return state.Status == specs.StateRunning, nil
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
	st := p.snapshot()
	recover := func(do func(context.Context, *Pod) error) *recovery {
		return &recovery{id: p.ID, lock: p.op, on: operation{"recover pod", p.subject()}, do: func(ctx context.Context) error { return do(ctx, p) }}
	}
	stands := s.podStands(p, f.alive)
	switch {
	case p.RestoredFrom != "" && !st.Restored:
		return recover(s.erasePod), nil
	case st.Phase == PodCreating && stands && len(s.containersOf(p.ID)) > 0:
		// The pod was ready, since it has containers, and its state file is lost.
		return recover(s.recoverPodState), nil
	case st.Phase == PodCreating:
		return recover(s.erasePod), nil
	case st.Phase == PodReady && st.BootID == s.bootID && stands:
		if s.podLacks(p) == "" {
			return nil, nil
		}
		return recover(s.repairPod), nil
	case st.Phase == PodNotReady && !exists(s.podStateDir(p.ID)):
		return nil, nil
	}
	if err := p.update(func(st *PodState) error { st.Phase, st.InitPid = PodNotReady, 0; return nil }); err != nil {
		return nil, err
	}
	// The daemon may have died in a stop, before it published the event.
	s.emit(p.ID, p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return recover(s.tearDownPod), nil
}

// podStands reports whether everything that a ready pod needs still exists: its namespaces,
// /dev/shm, and the init of a shared PID namespace.
func (s *Service) podStands(p *Pod, alive map[string]keeper.State) bool {
	dir := s.podStateDir(p.ID)
	if !exists(dir) {
		return false
	}
	st := p.snapshot()
	for name, promised := range map[string]bool{
		podns.User: p.userNamespace() != nil, podns.Net: !p.hostNetwork(), podns.UTS: !p.hostNetwork(), podns.IPC: !p.hostIPC(), podns.PID: st.InitPid != 0,
	} {
		if promised && !isNamespace(filepath.Join(dir, name)) {
			return false
		}
	}
	if !p.hostIPC() && !isMountPoint(filepath.Join(dir, shmDir)) {
		return false
	}
	return st.InitPid == 0 || alive[p.ID].Running
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
