package runtimeservice

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats answers with what every container uses that is created or
// runs and fits the filter, the newest first.
func (s *Service) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	stats, err := gather(ctx, s.measuredContainers(req.GetFilter()), s.containerStats)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: stats}, nil
}

// measuredContainers are the containers that fit the filter, the newest first.
func (s *Service) measuredContainers(f *runtimeapi.ContainerStatsFilter) []*Container {
	containers := slices.Collect(s.filterContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()))
	slices.SortFunc(containers, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return containers
}
