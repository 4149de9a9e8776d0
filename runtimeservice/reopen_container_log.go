package runtimeservice

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ReopenContainerLog makes the keeper open the container's log file again, after the kubelet has
// renamed the old one. No line is lost. Errors: ErrNotFound, ErrInvalidArgument,
// ErrFailedPrecondition (not running), and the keeper's.
func (s *Service) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.runningContainer("reopen log of", req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.Record().LogPath != "" {
		if err := s.keeper.ReopenLog(ctx, c.ID()); err != nil {
			return nil, fmt.Errorf("reopen log of container %s: %w", c.ID(), err)
		}
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
