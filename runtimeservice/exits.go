package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/keeper"
)

// followExits takes in what the keeper tells of ended processes until ctx ends.
func (s *Service) followExits(ctx context.Context) {
	for {
		select {
		case ev, ok := <-s.keeper.Events():
			if !ok {
				return
			}
			// Each on its own: an exit waits for the disk.
			s.background.Go(func() { s.takeExit(ctx, ev) })
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) takeExit(ctx context.Context, ev keeper.Event) {
	log := klog.FromContext(ctx)
	if pod, err := s.pods.get(ev.ID); err == nil {
		s.podInitEnded(ctx, pod)
		return
	}
	c, err := s.containers.get(ev.ID)
	if err != nil {
		return // removed meanwhile
	}
	if err := s.recordExit(c, ev.Exit); err != nil {
		log.Error(err, "Exit of a container is not recorded", "container", c.ID)
		return
	}
	s.release(ctx, c)
}

// recordExit makes the exit part of the container's state, once.
func (s *Service) recordExit(c *Container, exit keeper.Exit) error {
	c.telling.Lock()
	defer c.telling.Unlock()
	var started, ended bool
	err := c.update(func(st *ContainerState) error {
		if st.phase() == Exited {
			return nil
		}
		ended = true
		if st.Started.IsZero() && !c.starting.IsZero() {
			st.Started, started = c.starting, true
		}
		st.Finished, st.ExitCode = exit.At, exit.Code
		st.Reason, st.Message = exitReason(exit)
		st.Pid = 0
		return nil
	})
	if err != nil || !ended {
		return err
	}
	s.noteExit(c)
	pod, err := s.pods.get(c.PodID)
	if err != nil {
		return nil // its pod is gone, nobody asks for its events
	}
	if started {
		s.emit(c.ID, pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	s.tellStopped(c, pod)
	return nil
}

// noteExit tells the journal how the container has ended.
func (s *Service) noteExit(c *Container) {
	st := c.snapshot()
	text := fmt.Sprintf("%s, exit code %d", st.Reason, st.ExitCode)
	if st.Message != "" {
		text += ": " + st.Message
	}
	s.journal.Note("container ended", s.subject(c), text)
}

// tellStopped tells of an exit, and notes it if nobody hears.
func (s *Service) tellStopped(c *Container, pod *Pod) {
	heard := s.emit(c.ID, pod, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unheard = !heard
}

// recordUntold makes it part of the state that nobody heard of the exit, so that it
// is told again after a restart of the daemon, which may be why nobody listened.
// Until then the exit is with the keeper, from which the next daemon tells it. The
// caller holds c.op.
func (c *Container) recordUntold() error {
	c.mu.Lock()
	unheard := c.unheard && !c.state.Untold
	c.mu.Unlock()
	if !unheard {
		return nil
	}
	return c.update(func(st *ContainerState) error { st.Untold = true; return nil })
}

func exitReason(exit keeper.Exit) (reason, message string) {
	switch {
	case exit.Reason != "":
		return reasonUnknown, exit.Reason
	case exit.OOMKilled:
		return reasonOOMKilled, ""
	case exit.Code == 0:
		return reasonCompleted, ""
	}
	return reasonError, ""
}

// lostExit is the exit of a container of which nobody can tell the code.
func lostExit(why string) keeper.Exit {
	return keeper.Exit{Code: exitUnknown, At: time.Now(), Reason: why}
}

// release gives back what an ended container held: cgroup, mount, bundle. A
// failure is tried again by the container's removal.
func (s *Service) release(ctx context.Context, c *Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
	defer cancel()
	ctx, op := s.journal.Begin(ctx, "release container", s.subject(c))
	err := c.op.lock(ctx, "release container "+c.ID)
	if err == nil {
		defer c.op.unlock()
		if _, getErr := s.containers.get(c.ID); getErr == nil { // else removed meanwhile
			if err = c.recordUntold(); err == nil {
				err = s.tearDownContainer(ctx, c)
			}
		}
	}
	if op.End(err); err != nil {
		klog.FromContext(ctx).Error(err, "Ended container keeps some of its resources until it is removed", "container", c.ID)
	}
}

// podInitEnded is called when the init of a shared PID namespace is gone, and
// with it every process of the pod: new containers could not join.
func (s *Service) podInitEnded(ctx context.Context, p *Pod) {
	var was PodPhase
	err := p.update(func(st *PodState) error {
		was, st.Phase, st.InitPid = st.Phase, PodNotReady, 0
		return nil
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "End of a pod's init is not recorded", "pod", p.ID)
		return
	}
	if was == PodReady {
		s.emit(p.ID, p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// kill sends SIGKILL to the container's first process. A container that the
// keeper does not know is recorded as ended.
func (s *Service) kill(ctx context.Context, c *Container) error {
	err := s.keeper.Kill(ctx, c.ID, sigKill, false)
	if err == nil {
		return nil
	}
	if errors.Is(err, errdefs.ErrNotFound) && c.unstarted() {
		return s.recordExit(c, keeper.Exit{Code: 128 + int(sigKill), Signal: int(sigKill), At: time.Now()})
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return s.recordExit(c, lostExit("the keeper does not know the container"))
	}
	return fmt.Errorf("kill container %s: %w", c.ID, err)
}
