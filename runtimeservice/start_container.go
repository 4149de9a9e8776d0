package runtimeservice

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/slots"
	"github.com/micarun/mica/runtimeservice/state"
)

// StartContainer starts the process of a created container. If the process cannot be started, the
// container exits with reason StartError. If the process is killed during the start, the container
// has started and was killed. Errors: ErrNotFound, ErrFailedPrecondition (not created, or its pod
// not ready), and the OCI runtime's.
func (s *Service) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	err = s.detached(ctx, s.opts.ContainerTimeout, operation{"start container", s.subject(c)}, func(ctx context.Context) error {
		return s.startContainer(ctx, c)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (s *Service) startContainer(ctx context.Context, c *Container) error {
	if err := c.op.Lock(ctx, "start container "+c.ID()); err != nil {
		return err
	}
	defer c.op.Unlock()
	pod, err := s.pods.Get(c.PodID())
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID(), err)
	}
	if err := pod.RequireReady("start container in"); err != nil {
		return err
	}
	if err := c.Require("start", state.Created); err != nil {
		return err
	}
	if err := s.refuseFrozen(c); err != nil { // it can be started later
		return fmt.Errorf("start container %s: %w", c.ID(), err)
	}
	operations.Enter(ctx, "notify plugins")
	if err := s.plugins.StartContainer(ctx, c.ID()); err != nil {
		c.beginStart()
		return s.failStart(ctx, c, err)
	}
	c.beginStart()
	pid, err := s.startProcesses(ctx, pod, c)
	if err != nil {
		return s.failStart(ctx, c, err)
	}
	if err := failpoint.Hit("container-started"); err != nil {
		return err
	}
	if err := s.recordStart(c, pod, pid); err != nil {
		return err
	}
	st := c.State()
	s.plugins.PostStartContainer(ctx, c.ID(), st.Pid, st.Started)
	return nil
}

// startProcesses starts the container's process, or resumes those of the checkpoint, and returns
// the PID of the first.
func (s *Service) startProcesses(ctx context.Context, pod *Pod, c *Container) (int, error) {
	if c.Record().Restored == nil {
		done, err := s.slots.Acquire(ctx, slots.Start)
		if err != nil {
			return 0, err
		}
		defer done()
		operations.Enter(ctx, "start by OCI runtime")
		c.waiter = checkpoint.ExecutableOf(c.State().Pid)
		if err := s.keeper.Start(ctx, c.ID()); err != nil {
			return 0, fmt.Errorf("start by OCI runtime: %w", s.nameFrozen(c, err))
		}
		return c.State().Pid, nil
	}
	operations.Enter(ctx, "restore by OCI runtime")
	pid, err := s.restoreProcesses(ctx, pod, c)
	if err != nil {
		return 0, err
	}
	if err := dropCheckpoint(ctx, c.Dir()); err != nil {
		klog.FromContext(ctx).Error(err, "Removing the checkpoint of a restored container failed, the container's tear-down tries again", "container", c.ID())
	}
	return pid, nil
}

// beginStart sets the start time, for an exit that is recorded before the start.
func (c *Container) beginStart() {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	c.starting = time.Now()
}

// recordStart persists the start in the container's state and publishes its event, unless
// recordExit was faster and did both.
func (s *Service) recordStart(c *Container, pod *Pod, pid int) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	var first bool
	err := c.Update(func(st *state.ContainerState) error {
		if first = st.Started.IsZero(); first {
			st.Started, st.Pid = c.starting, pid
		}
		return nil
	})
	if err == nil && first {
		s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	return err
}

// failStart ends a container whose process could not be started. The container's message gets the
// error, because the kubelet shows that.
func (s *Service) failStart(ctx context.Context, c *Container, cause error) error {
	cause = fmt.Errorf("start container %q (%s): %w", c.Config().GetMetadata().GetName(), c.ID(), cause)
	if err := s.recordFailedStart(c, cause); err != nil {
		return fmt.Errorf("%w; and recording its exit failed: %w", cause, err)
	}
	clean, op := s.operations.Begin(context.WithoutCancel(ctx), "release failed container", s.subject(c))
	err := s.tearDownContainer(clean, c)
	if op.End(err); err != nil {
		return fmt.Errorf("%w; and its tear-down failed, its removal tries again: %w", cause, err)
	}
	return cause
}

// recordFailedStart persists a failed start as the container's exit and publishes its event, unless
// the container has exited for another reason.
func (s *Service) recordFailedStart(c *Container, cause error) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	ended := false
	err := c.Update(func(st *state.ContainerState) error {
		ended = st.Phase() != state.Exited
		if st.Phase() == state.Exited && st.Reason != reasonError {
			return nil
		}
		st.Started, st.Finished = c.starting, time.Now()
		st.ExitCode, st.Reason, st.Message, st.Pid = exitStartError, reasonStartError, cause.Error(), 0
		return nil
	})
	if pod, podErr := s.pods.Get(c.PodID()); podErr == nil && err == nil && ended {
		s.publishStopped(c, pod)
	}
	return err
}
