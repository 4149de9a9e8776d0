package runtimeservice

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RestorePod is not implemented, like CheckpointContainer. It makes nothing.
func (s *Service) RestorePod(_ context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, fmt.Errorf("restore pod %q from %s: %w", req.GetConfig().GetMetadata().GetName(), req.GetCheckpointPath(), errNoCheckpoint())
}
