package runtimeservice

import (
	"cmp"
	"context"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/chunks"
	"github.com/micarun/mica/runtimeservice/state"
)

// ListPodSandbox returns the pods that match the filter, newest first.
func (s *Service) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listPods(req.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox with messages of bounded size.
func (s *Service) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return chunks.Send(s.listPods(req.GetFilter()), func(chunk []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk})
	})
}

func (s *Service) listPods(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var items []*runtimeapi.PodSandbox
	for _, p := range s.pods.All() {
		// A pod is listed only after its creation.
		if p.State().Phase == state.PodCreating || !strings.HasPrefix(p.ID(), f.GetId()) || !hasLabels(p.Config().GetLabels(), f.GetLabelSelector()) {
			continue
		}
		item := p.listed()
		if f.GetState() != nil && f.GetState().GetState() != item.GetState() {
			continue
		}
		items = append(items, item)
	}
	slices.SortFunc(items, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	return items
}
