package runtimeservice

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats returns the usage of created and running containers that match the filter,
// newest first.
func (s *Service) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	usage, err := gather(ctx, s.measuredContainers(req.GetFilter()), s.containerStats)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: usage}, nil
}

// StreamContainerStats is ListContainerStats with messages of bounded size. A message is sent as
// soon as its containers are read.
func (s *Service) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	return gatherAndSend(stream.Context(), s.measuredContainers(req.GetFilter()), s.containerStats, func(chunk []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk})
	})
}

// measuredContainers returns the containers that match the filter, newest first.
func (s *Service) measuredContainers(f *runtimeapi.ContainerStatsFilter) []*Container {
	containers := slices.Collect(s.filterContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()))
	slices.SortFunc(containers, func(a, b *Container) int { return b.Record().Created.Compare(a.Record().Created) })
	return containers
}
