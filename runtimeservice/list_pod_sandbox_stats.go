package runtimeservice

import (
	"context"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandboxStats answers with what every ready pod uses that fits the
// filter, the newest first.
func (s *Service) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	stats, err := gather(ctx, s.readyPods(f.GetId(), f.GetLabelSelector()), s.podStats)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: stats}, nil
}

// readyPods are the ready pods that fit the prefix of their ID and the labels,
// the newest first.
func (s *Service) readyPods(id string, labels map[string]string) []*Pod {
	pods := slices.DeleteFunc(s.pods.all(), func(p *Pod) bool {
		return p.snapshot().Phase != PodReady || !strings.HasPrefix(p.ID, id) || !hasLabels(p.config().GetLabels(), labels)
	})
	slices.SortFunc(pods, func(a, b *Pod) int { return b.Created.Compare(a.Created) })
	return pods
}
