package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointPod is not implemented, like CheckpointContainer. It writes
// nothing to the request's output path.
func (s *Service) CheckpointPod(_ context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	p, err := s.pods.get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("checkpoint pod: %w", err)
	}
	return nil, fmt.Errorf("checkpoint pod %s: %w", p.ID, errNoCheckpoint())
}

func errNoCheckpoint() error {
	return fmt.Errorf("this version of Mica does not checkpoint whole pods: %w", errdefs.ErrNotImplemented)
}
