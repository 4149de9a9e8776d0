package runtimeservice

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/state"
	"github.com/micarun/mica/runtimeservice/stats"
)

// PodSandboxStats returns the resource usage of a pod and its containers. Errors: ErrNotFound,
// ErrInvalidArgument, ErrFailedPrecondition (not ready).
func (s *Service) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.pods.Get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("pod stats: %w", err)
	}
	if err := p.RequireReady("read usage of"); err != nil {
		return nil, err
	}
	usage, err := s.podStats(ctx, p, s.containersOf(p.ID()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: usage}, nil
}

// podStats reads the usage of a ready pod and its containers. It returns ErrNotFound for a pod in another phase, also
// if it stops meanwhile.
func (s *Service) podStats(ctx context.Context, p *Pod, containers []*Container) (*runtimeapi.PodSandboxStats, error) {
	linux, err := s.linuxPodStats(ctx, p, containers)
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	cfg := p.Config()
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.ID(),
			Metadata:    cfg.GetMetadata(),
			Labels:      maps.Clone(cfg.GetLabels()),
			Annotations: maps.Clone(cfg.GetAnnotations()),
		},
		Linux: linux,
	}, nil
}

func (s *Service) linuxPodStats(ctx context.Context, p *Pod, containers []*Container) (*runtimeapi.LinuxPodSandboxStats, error) {
	st, err := s.cgroups.Usage(p.CgroupParent())
	if err != nil {
		return nil, err
	}
	pids, err := s.cgroups.Members(p.CgroupParent())
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxPodSandboxStats{
		Cpu:     stats.CPU(st, p.usage.Rate(st.Time, st.CPU.Usage, p.Record().Created)),
		Memory:  stats.Memory(st),
		Io:      stats.IO(st),
		Process: stats.ProcessCount(st, pids),
	}
	if counters, err := s.podInterfaces(ctx, p); err != nil {
		return nil, err
	} else if !p.hostNetwork() { // the node's network is not the pod's usage
		out.Network = stats.Network(time.Now(), counters)
	}
	out.Containers, err = gather(ctx, containers, s.containerStats)
	return out, err
}

// podInterfaces returns the counters of the pod's own network, none for a pod in the host network.
// It returns none either, and logs why, if they cannot be read although the pod is ready: a pod that
// has made its interfaces unreadable keeps the rest of its usage.
func (s *Service) podInterfaces(ctx context.Context, p *Pod) ([]network.InterfaceStats, error) {
	if p.hostNetwork() {
		return nil, nil
	}
	counters, err := network.Stats(filepath.Join(s.paths.PodState(p.ID()), podns.Net))
	if err != nil && p.State().Phase == state.PodReady {
		klog.FromContext(ctx).Error(err, "Omitting the network from a pod's usage", "pod", p.ID())
		return nil, nil
	}
	return counters, err
}

// unreadablePod converts the error of reading a pod: to ErrNotFound if the pod stopped meanwhile,
// because then cause is a consequence of the stop.
func unreadablePod(p *Pod, cause error) error {
	if ph := p.State().Phase; ph != state.PodReady {
		return fmt.Errorf("read usage of pod %s: %s: %w", p.ID(), ph, errdefs.ErrNotFound)
	}
	return fmt.Errorf("read usage of pod %s: %w", p.ID(), cause)
}
