package runtimeservice

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/signals"
	"github.com/micarun/mica/runtimeservice/state"
)

// StopContainer sends the container's stop signal, and SIGKILL after the grace period. It returns
// when the exit is recorded. A container that is unknown or not running is no error. The stop
// continues if the caller gives up. It is safe for concurrent use.
func (s *Service) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stop container: %w", err)
	}
	grace := time.Duration(max(req.GetTimeout(), 0)) * time.Second
	err = s.detached(ctx, grace+s.opts.TeardownTimeout, operation{"stop container", s.subject(c)}, func(ctx context.Context) error {
		return s.stopContainer(ctx, c, grace)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (s *Service) stopContainer(ctx context.Context, c *Container, grace time.Duration) error {
	// The lock waits for a start under way. It is released before the wait for the exit, so that
	// another stop can have a shorter grace period.
	if err := c.op.Lock(ctx, "stop container "+c.ID()); err != nil {
		return err
	}
	c.op.Unlock()
	if c.Phase() != state.Running {
		return nil
	}
	if grace > 0 {
		if err := s.keeper.Kill(ctx, c.ID(), signals.Number(c.Record().StopSignal), false); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("stop container %s: send %s: %w", c.ID(), c.Record().StopSignal, err)
		}
		operations.Enter(ctx, "wait for its end")
		patience := time.NewTimer(grace)
		defer patience.Stop()
		select {
		case <-c.Exited():
			return nil
		case <-patience.C:
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: wait for its end: %w", c.ID(), ctx.Err())
		}
	}
	return s.killContainer(ctx, c)
}
