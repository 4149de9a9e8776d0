package runtimeservice

import (
	"cmp"
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// UpdatePodSandboxResources records the resources of the whole pod for verbose status and metrics,
// and writes the request's limits to the pod's cgroup. Also for a cgroup made by the kubelet, where
// the write is a no-op: the kubelet sends what it has written. Errors: ErrNotFound,
// ErrInvalidArgument, ErrFailedPrecondition (not ready), and the cgroup's.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	p, err := s.pods.Get(req.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("update pod: %w", err)
	}
	if err := p.op.Lock(ctx, "update pod "+p.ID()); err != nil {
		return nil, err
	}
	defer p.op.Unlock()
	if err := p.RequireReady("update"); err != nil {
		return nil, err
	}
	limits, err := s.podLimits(podResources(req.GetOverhead(), req.GetResources()))
	if err != nil {
		return nil, fmt.Errorf("update pod %s: %w", p.ID(), err)
	}
	if err := s.plugins.UpdatePod(ctx, p.ID(), req.GetOverhead(), req.GetResources()); err != nil {
		return nil, fmt.Errorf("update pod %s: %w", p.ID(), err)
	}
	if err := s.cgroups.SetResources(p.CgroupParent(), limits); err != nil {
		return nil, fmt.Errorf("update pod %s: %w", p.ID(), err)
	}
	err = p.Update(func(st *state.PodState) error {
		if req.GetOverhead() != nil {
			st.Overhead.Msg = req.GetOverhead()
		}
		if req.GetResources() != nil {
			st.Resources.Msg = req.GetResources()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	st := p.State()
	s.plugins.PostUpdatePod(ctx, p.ID(), st.Overhead.Msg, st.Resources.Msg)
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// podLimits are a pod's resources as limits of its cgroup. Unlike a container's, a
// pod's limit of memory says nothing of swap, which its containers may be allowed.
func (s *Service) podLimits(r *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, error) {
	limits, err := spec.Resources(r, s.host)
	if err == nil && limits.Memory != nil && r.GetMemorySwapLimitInBytes() == 0 {
		limits.Memory.Swap = nil
	}
	return limits, err
}

// podResources is what a pod may use: its containers' resources and the
// overhead. What the containers have no limit of, the pod has none of either.
func podResources(overhead, r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	sum := &runtimeapi.LinuxContainerResources{
		CpuPeriod: r.GetCpuPeriod(), CpuQuota: r.GetCpuQuota(), CpuShares: r.GetCpuShares(),
		CpusetCpus: r.GetCpusetCpus(), CpusetMems: r.GetCpusetMems(),
		MemoryLimitInBytes: r.GetMemoryLimitInBytes(), MemorySwapLimitInBytes: r.GetMemorySwapLimitInBytes(),
		HugepageLimits: r.GetHugepageLimits(), Unified: r.GetUnified(),
	}
	if sum.CpuShares > 0 {
		sum.CpuShares += overhead.GetCpuShares()
	}
	if sum.CpuQuota > 0 && overhead.GetCpuQuota() > 0 {
		// Converts the overhead's quota to the containers' period.
		period := cmp.Or(sum.CpuPeriod, defaultCPUPeriod)
		sum.CpuQuota += overhead.GetCpuQuota() * period / cmp.Or(overhead.GetCpuPeriod(), defaultCPUPeriod)
	}
	if sum.MemoryLimitInBytes > 0 {
		sum.MemoryLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	if sum.MemorySwapLimitInBytes > 0 {
		sum.MemorySwapLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	return sum
}

// defaultCPUPeriod is the kernel's CFS period in microseconds.
const defaultCPUPeriod = int64(100_000)
