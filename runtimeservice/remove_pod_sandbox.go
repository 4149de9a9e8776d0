package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// RemovePodSandbox stops the pod and removes it with all its containers, including those with
// unusable records. An unknown pod is no error. The removal continues if the caller gives up, and a
// retry waits for it.
func (s *Service) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	pod, err := s.pods.Get(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, s.removeUnusablePod(ctx, req.GetPodSandboxId())
	}
	if err != nil {
		return nil, fmt.Errorf("remove pod: %w", err)
	}
	err = s.detached(ctx, s.opts.TeardownTimeout, operation{"remove pod", pod.Subject()}, func(ctx context.Context) error {
		return s.removePod(ctx, pod)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (s *Service) removePod(ctx context.Context, p *Pod) error {
	if err := p.op.Lock(ctx, "remove pod "+p.ID()); err != nil {
		return err
	}
	defer p.op.Unlock()
	if _, err := s.pods.Get(p.ID()); err != nil {
		return nil // the call before this one has removed it
	}
	ready := p.State().Phase == state.PodReady
	if err := s.eraseUnusableOf(ctx, p.ID()); err != nil {
		return fmt.Errorf("remove pod %q (%s): %w", p.Metadata().GetName(), p.ID(), err)
	}
	if err := s.erasePod(ctx, p); err != nil {
		return fmt.Errorf("remove pod %q (%s): %w", p.Metadata().GetName(), p.ID(), err)
	}
	if ready {
		s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}
