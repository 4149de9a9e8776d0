package runtimeservice

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StreamContainerStats is ListContainerStats in several messages.
func (s *Service) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	stats, err := s.listContainerStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	for chunk := range chunkBySize(stats, chunkBytes) {
		if err := stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk}); err != nil {
			return err
		}
	}
	return nil
}
