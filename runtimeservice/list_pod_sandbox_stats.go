package runtimeservice

import (
	"context"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// ListPodSandboxStats returns the usage of ready pods that match the filter, newest first.
func (s *Service) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	usage, err := gather(ctx, s.readyPods(f.GetId(), f.GetLabelSelector()), s.statsOfPods())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: usage}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats with messages of bounded size. A message is sent as
// soon as its pods are read.
func (s *Service) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	f := req.GetFilter()
	return gatherAndSend(stream.Context(), s.readyPods(f.GetId(), f.GetLabelSelector()), s.statsOfPods(), func(chunk []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

// readyPods returns the ready pods that match the ID prefix and the labels, newest first.
func (s *Service) readyPods(id string, labels map[string]string) []*Pod {
	pods := slices.DeleteFunc(s.pods.All(), func(p *Pod) bool {
		return p.State().Phase != state.PodReady || !strings.HasPrefix(p.ID(), id) || !hasLabels(p.Config().GetLabels(), labels)
	})
	slices.SortFunc(pods, func(a, b *Pod) int { return b.Record().Created.Compare(a.Record().Created) })
	return pods
}

// statsOfPods returns podStats for a list of pods, with the containers that exist now.
func (s *Service) statsOfPods() func(context.Context, *Pod) (*runtimeapi.PodSandboxStats, error) {
	containers := s.containersByPod()
	return func(ctx context.Context, p *Pod) (*runtimeapi.PodSandboxStats, error) {
		return s.podStats(ctx, p, containers[p.ID()])
	}
}
