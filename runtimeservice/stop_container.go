package runtimeservice

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/operations"
)

// StopContainer asks the container to end by its stop signal and, after the
// grace period, by SIGKILL; it returns when the container's exit is recorded.
// A container that is unknown or does not run is no error. The stop goes on
// when the caller gives up.
func (s *Service) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.containers.get(req.GetContainerId())
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
	// A start under way is waited for; the wait for the end is not under the
	// lock, so that a second stop can be less patient.
	if err := c.op.lock(ctx, "stop container "+c.ID); err != nil {
		return err
	}
	c.op.unlock()
	if c.phase() != Running {
		return nil
	}
	if grace > 0 {
		if err := s.keeper.Kill(ctx, c.ID, signalNumber(c.StopSignal), false); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("stop container %s: send %s: %w", c.ID, c.StopSignal, err)
		}
		operations.Enter(ctx, "wait for its end")
		patience := time.NewTimer(grace)
		defer patience.Stop()
		select {
		case <-c.exited:
			return nil
		case <-patience.C:
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: wait for its end: %w", c.ID, ctx.Err())
		}
	}
	return s.killContainer(ctx, c)
}
