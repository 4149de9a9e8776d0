package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer is not implemented: nothing here drives CRIU. Errors:
// ErrNotFound and ErrInvalidArgument for a container that is not there, else
// ErrNotImplemented.
func (s *Service) CheckpointContainer(_ context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	c, err := s.containers.get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("checkpoint container: %w", err)
	}
	return nil, fmt.Errorf("checkpoint container %s: %w", c.ID, errNoCheckpoint())
}

func errNoCheckpoint() error {
	return fmt.Errorf("this version of Mica does not checkpoint and restore by CRIU: %w", errdefs.ErrNotImplemented)
}
