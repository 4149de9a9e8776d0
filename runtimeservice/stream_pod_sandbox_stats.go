package runtimeservice

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StreamPodSandboxStats is ListPodSandboxStats in several messages.
func (s *Service) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	stats, err := s.listPodStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	for chunk := range chunkBySize(stats, chunkBytes) {
		if err := stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk}); err != nil {
			return err
		}
	}
	return nil
}
