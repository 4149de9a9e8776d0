package runtimeservice

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StreamContainers is ListContainers in several messages.
func (s *Service) StreamContainers(req *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	for chunk := range slices.Chunk(s.listContainers(req.GetFilter()), chunkSize) {
		if err := stream.Send(&runtimeapi.StreamContainersResponse{Containers: chunk}); err != nil {
			return err
		}
	}
	return nil
}
