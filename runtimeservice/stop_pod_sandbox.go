package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// StopPodSandbox kills every process of the pod and removes its network, namespaces and mounts.
// Records, logs and writable layers stay. A pod that is unknown or stopped is no error. The stop
// continues if the caller gives up, and a retry waits for it.
func (s *Service) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	pod, err := s.pods.Get(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stop pod: %w", err)
	}
	err = s.detached(ctx, s.opts.TeardownTimeout, operation{"stop pod", pod.Subject()}, func(ctx context.Context) error {
		return s.stopPod(ctx, pod)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *Service) stopPod(ctx context.Context, p *Pod) error {
	if err := p.op.Lock(ctx, "stop pod "+p.ID()); err != nil {
		return err
	}
	defer p.op.Unlock()
	var was state.PodPhase
	err := p.Update(func(st *state.PodState) error {
		was, st.Phase = st.Phase, state.PodNotReady
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.tearDownPod(ctx, p); err != nil {
		return fmt.Errorf("stop pod %q (%s): %w", p.Metadata().GetName(), p.ID(), err)
	}
	if was == state.PodReady {
		s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	return nil
}
