package runtimeservice

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats answers with what every container uses that is created or
// runs and fits the filter, the newest first.
func (s *Service) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	stats, err := s.listContainerStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: stats}, nil
}

func (s *Service) listContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	containers := slices.Collect(s.filterContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()))
	slices.SortFunc(containers, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return gather(ctx, containers, s.containerStats)
}
