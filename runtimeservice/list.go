package runtimeservice

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// chunkSize is how many items one message of a streamed list carries. With
// 16 KiB of labels each, which is far more than the kubelet gives, a message
// stays well below the client's limit of 16 MiB.
const chunkSize = 100

// ListPodSandbox lists pods, the newest first.
func (s *Service) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listPods(req.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox in several messages.
func (s *Service) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	for chunk := range slices.Chunk(s.listPods(req.GetFilter()), chunkSize) {
		if err := stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// ListContainers lists containers, the newest first.
func (s *Service) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(req.GetFilter())}, nil
}

// StreamContainers is ListContainers in several messages.
func (s *Service) StreamContainers(req *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	for chunk := range slices.Chunk(s.listContainers(req.GetFilter()), chunkSize) {
		if err := stream.Send(&runtimeapi.StreamContainersResponse{Containers: chunk}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) listPods(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var items []*runtimeapi.PodSandbox
	for _, p := range s.pods.all() {
		// A pod that is still being made has an answer only when it is ready.
		if p.snapshot().Phase == PodCreating || !strings.HasPrefix(p.ID, f.GetId()) || !hasLabels(p.config().GetLabels(), f.GetLabelSelector()) {
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

func (s *Service) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var items []*runtimeapi.Container
	for c := range s.filterContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		item := c.listed()
		if f.GetState() != nil && f.GetState().GetState() != item.GetState() {
			continue
		}
		items = append(items, item)
	}
	slices.SortFunc(items, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	return items
}

// filterContainers yields the containers that are made and fit the prefixes of
// their own and their pod's ID and the labels.
func (s *Service) filterContainers(id, podID string, labels map[string]string) iter.Seq[*Container] {
	return func(yield func(*Container) bool) {
		for _, c := range s.containers.all() {
			if c.phase() == Creating || !strings.HasPrefix(c.ID, id) || !strings.HasPrefix(c.PodID, podID) || !hasLabels(c.config().GetLabels(), labels) {
				continue
			}
			if !yield(c) {
				return
			}
		}
	}
}

func hasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// containersOf returns all containers of a pod, also those that are still
// being made, the oldest first.
func (s *Service) containersOf(podID string) []*Container {
	var of []*Container
	for _, c := range s.containers.all() {
		if c.PodID == podID {
			of = append(of, c)
		}
	}
	slices.SortFunc(of, func(a, b *Container) int { return a.Created.Compare(b.Created) })
	return of
}
