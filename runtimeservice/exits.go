package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/state"
)

// Reasons of an exit, beside those that the keeper reports.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonRebooted   = "NodeRebooted"
	reasonUnknown    = "Unknown"
)

// Exit codes that no process returned.
const (
	exitStartError = 128 // the OCI runtime could not start the process
	exitUnknown    = 255 // the code was lost; never shown as success
)

// followExits handles the exits that the keeper reports until ctx ends.
func (s *Service) followExits(ctx context.Context) {
	for {
		select {
		case ev, ok := <-s.keeper.Events():
			if !ok {
				return
			}
			// Each in its own goroutine, because recording an exit waits for the disk.
			s.background.Go(func() { s.takeExit(ctx, ev) })
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) takeExit(ctx context.Context, ev keeper.Event) {
	log := klog.FromContext(ctx)
	if pod, err := s.pods.Get(ev.ID); err == nil {
		s.podInitEnded(ctx, pod)
		return
	}
	c, err := s.containers.Get(ev.ID)
	if err != nil {
		return // removed meanwhile
	}
	if err := s.recordExit(c, ev.Exit); err != nil {
		log.Error(err, "Recording the exit of a container failed", "container", c.ID())
		return
	}
	s.release(ctx, c)
}

// recordExit persists the exit in the container's state, once, and publishes its event.
func (s *Service) recordExit(c *Container, exit keeper.Exit) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	var started, ended bool
	err := c.Update(func(st *state.ContainerState) error {
		if st.Phase() == state.Exited {
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
	if err := failpoint.Hit("exit-recorded"); err != nil {
		return err
	}
	s.noteExit(c)
	pod, err := s.pods.Get(c.PodID())
	if err != nil {
		return nil // the pod was removed; its events have no subscriber
	}
	if started {
		s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	s.publishStopped(c, pod)
	return nil
}

// noteExit notes how the container has exited.
func (s *Service) noteExit(c *Container) {
	st := c.State()
	text := fmt.Sprintf("%s, exit code %d", st.Reason, st.ExitCode)
	if st.Message != "" {
		text += ": " + st.Message
	}
	s.operations.Note("container ended", s.subject(c), text)
}

// publishStopped publishes the event of an exit, and remembers if it reached no subscriber. The
// caller holds c.publishing.
func (s *Service) publishStopped(c *Container, pod *Pod) {
	c.undelivered = !s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// awaitPublished waits until the event of the recorded exit is published, so that later events come
// after it.
func (c *Container) awaitPublished() {
	c.publishing.Lock()
	defer c.publishing.Unlock()
}

// recordUndelivered persists that the exit event reached no subscriber, so that it is sent again
// after a restart of the daemon. Before this call the keeper still has the exit, and the next
// daemon would publish it from there. The caller holds c.op.
func (c *Container) recordUndelivered() error {
	c.publishing.Lock()
	undelivered := c.undelivered
	c.publishing.Unlock()
	if !undelivered || c.State().Undelivered {
		return nil
	}
	return c.Update(func(st *state.ContainerState) error { st.Undelivered = true; return nil })
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

// lostExit returns an exit with an unknown code.
func lostExit(why string) keeper.Exit {
	return keeper.Exit{Code: exitUnknown, At: time.Now(), Reason: why}
}

// release releases the resources of an exited container: cgroup, mount, bundle. After a failure,
// the container's removal tries again.
func (s *Service) release(ctx context.Context, c *Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
	defer cancel()
	ctx, op := s.operations.Begin(ctx, "release container", s.subject(c))
	err := c.op.Lock(ctx, "release container "+c.ID())
	if err == nil {
		defer c.op.Unlock()
		if _, getErr := s.containers.Get(c.ID()); getErr == nil { // else removed meanwhile
			if err = c.recordUndelivered(); err == nil {
				err = s.tearDownContainer(ctx, c)
			}
		}
	}
	if op.End(err); err != nil {
		klog.FromContext(ctx).Error(err, "Releasing resources of an exited container failed, its removal tries again", "container", c.ID())
	}
}

// podInitEnded handles the exit of the init of a shared PID namespace. Every process of the pod
// ends with it, and new containers could not join.
func (s *Service) podInitEnded(ctx context.Context, p *Pod) {
	var was state.PodPhase
	err := p.Update(func(st *state.PodState) error {
		was, st.Phase, st.InitPid = st.Phase, state.PodNotReady, 0
		return nil
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Recording the exit of a pod's init failed", "pod", p.ID())
		return
	}
	if was == state.PodReady {
		s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// kill sends SIGKILL to the container's first process. A container that the keeper does not know is
// recorded as exited.
func (s *Service) kill(ctx context.Context, c *Container) error {
	err := s.keeper.Kill(ctx, c.ID(), syscall.SIGKILL, false)
	if err == nil {
		return nil
	}
	if errors.Is(err, errdefs.ErrNotFound) && c.unstarted() {
		return s.recordExit(c, keeper.Exit{Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), At: time.Now()})
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return s.recordExit(c, lostExit("the keeper does not know the container"))
	}
	return fmt.Errorf("kill container %s: %w", c.ID(), err)
}
