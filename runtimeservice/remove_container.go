package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveContainer removes the container, its writable layer and its record. It kills a running
// container first. The log file stays, because the kubelet manages it. An unknown container is no
// error.
func (s *Service) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, s.removeUnusableContainer(ctx, req.GetContainerId())
	}
	if err != nil {
		return nil, fmt.Errorf("remove container: %w", err)
	}
	err = s.detached(ctx, s.opts.TeardownTimeout, operation{"remove container", s.subject(c)}, func(ctx context.Context) error {
		return s.removeContainer(ctx, c)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Service) removeContainer(ctx context.Context, c *Container) error {
	if err := c.op.Lock(ctx, "remove container "+c.ID()); err != nil {
		return err
	}
	defer c.op.Unlock()
	if _, err := s.containers.Get(c.ID()); err != nil {
		return nil // the call before this one has removed it
	}
	if err := s.eraseContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %q: %w", c.Config().GetMetadata().GetName(), err)
	}
	if pod, err := s.pods.Get(c.PodID()); err == nil {
		s.emit(c.ID(), pod, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return nil
}
