package runtimeservice

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/podns"
)

// PodSandboxStats answers with what a pod and its containers use. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not ready).
func (s *Service) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.pods.get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("pod stats: %w", err)
	}
	if err := p.require("read usage of", PodReady); err != nil {
		return nil, err
	}
	stats, err := s.podStats(ctx, p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, nil
}

// podStats reads a ready pod. One that is not, or ends meanwhile, is
// ErrNotFound.
func (s *Service) podStats(ctx context.Context, p *Pod) (*runtimeapi.PodSandboxStats, error) {
	linux, err := s.linuxPodStats(ctx, p)
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	cfg := p.config()
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          p.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      maps.Clone(cfg.GetLabels()),
			Annotations: maps.Clone(cfg.GetAnnotations()),
		},
		Linux: linux,
	}, nil
}

func (s *Service) linuxPodStats(ctx context.Context, p *Pod) (*runtimeapi.LinuxPodSandboxStats, error) {
	st, err := s.cgroups.Stats(p.CgroupParent)
	if err != nil {
		return nil, err
	}
	pids, err := s.cgroups.Pids(p.CgroupParent)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxPodSandboxStats{
		Cpu:     cpuUsage(st, p.usage.rate(st.Time, st.CPU.Usage, p.Created)),
		Memory:  memoryUsage(st),
		Io:      ioUsage(st),
		Process: &runtimeapi.ProcessUsage{Timestamp: st.Time.UnixNano(), ProcessCount: uint64Value(uint64(len(pids)))},
	}
	if !p.hostNetwork() { // the node's network is no usage of the pod
		counters, err := s.podInterfaces(p)
		if err != nil {
			return nil, err
		}
		out.Network = networkUsage(time.Now(), counters)
	}
	out.Containers, err = gather(ctx, s.containersOf(p.ID), s.containerStats)
	return out, err
}

// podInterfaces are the counters of the pod's own network, none for a pod on
// the node's.
func (s *Service) podInterfaces(p *Pod) ([]network.InterfaceStats, error) {
	if p.hostNetwork() {
		return nil, nil
	}
	return network.Stats(filepath.Join(s.podStateDir(p.ID), podns.Net))
}

// unreadablePod says why a pod could not be read: ErrNotFound if it ended
// meanwhile, whatever that made the reading stumble over.
func unreadablePod(p *Pod, cause error) error {
	if ph := p.snapshot().Phase; ph != PodReady {
		return fmt.Errorf("read usage of pod %s: %s: %w", p.ID, ph, errdefs.ErrNotFound)
	}
	return fmt.Errorf("read usage of pod %s: %w", p.ID, cause)
}
