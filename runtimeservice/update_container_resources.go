package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/limits"
	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// UpdateContainerResources changes the limits of a created or running container. A zero field of
// the request leaves its limit unchanged. oom_score_adj is set for the first process, and for the
// others with the same value as it. The container's status shows the new values, or after a failed
// update the old ones. Errors: ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (exited), and
// the OCI runtime's, for example for a memory limit below the usage.
func (s *Service) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("update container: %w", err)
	}
	if req.GetWindows() != nil {
		return nil, fmt.Errorf("update container %s: resources of Windows: %w", c.ID(), errdefs.ErrInvalidArgument)
	}
	err = s.detached(ctx, s.opts.ContainerTimeout, operation{"update container", s.subject(c)}, func(ctx context.Context) error {
		return s.updateContainer(ctx, c, req.GetLinux())
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (s *Service) updateContainer(ctx context.Context, c *Container, change *runtimeapi.LinuxContainerResources) error {
	if err := c.Require("update", state.Created, state.Running); err != nil {
		return err
	}
	// Without the lock, to avoid a deadlock: plugins may first update other containers, whose
	// updates may change this one.
	wanted, err := s.plugins.UpdateContainer(ctx, c.ID(), change)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), err)
	}
	if err := s.limitContainer(ctx, c, wanted); err != nil {
		return err
	}
	s.plugins.PostUpdateContainer(ctx, c.ID())
	return nil
}

// limitContainer sets new limits of the container. If a step fails, it restores the old ones.
func (s *Service) limitContainer(ctx context.Context, c *Container, wanted nri.Update) error {
	if err := c.op.Lock(ctx, "update container "+c.ID()); err != nil {
		return err
	}
	defer c.op.Unlock()
	if err := c.Require("update", state.Created, state.Running); err != nil {
		return err
	}
	if c.unstarted() {
		return fmt.Errorf("update container %s: without a cgroup until its processes are restored: %w", c.ID(), errdefs.ErrFailedPrecondition)
	}
	h, err := s.handler(c.Record().Handler)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), err)
	}
	next := mergeResources(c.State().Resources.Msg, wanted.Resources)
	byRuntime, err := spec.Resources(next, s.host)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), err)
	}
	score, err := spec.OOMScoreAdj(wanted.Resources, s.host)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), err)
	}
	// OCI runtimes set CPU and memory limits; some ignore the others.
	direct := &specs.LinuxResources{HugepageLimits: byRuntime.HugepageLimits, Unified: byRuntime.Unified}
	if wanted.Direct != nil {
		direct.Pids, direct.Memory = wanted.Direct.Pids, wanted.Direct.Memory
	}
	complete := *byRuntime
	complete.Pids = direct.Pids
	byRuntime.HugepageLimits, byRuntime.Unified = nil, nil
	steps := limitSteps{byRuntime: byRuntime, direct: direct}
	if wanted.Resources.GetOomScoreAdj() != 0 {
		steps.score = &score
	}
	if err := s.applyLimits(ctx, c, h, steps); err != nil {
		return fmt.Errorf("update container %s: %w", c.ID(), errors.Join(err, s.undoLimits(ctx, c, h, steps)))
	}
	s.plugins.Limited(c.ID(), &complete)
	set := state.Limits{Resources: limits.Merge(&complete, &specs.LinuxResources{Memory: direct.Memory})}
	set.OOMScoreAdj = steps.score
	return c.Update(func(st *state.ContainerState) error {
		st.Resources.Msg = next
		st.Limits = addLimits(st.Limits, set)
		return nil
	})
}

// limitSteps are the new limits of a container, in the order in which they are set.
type limitSteps struct {
	byRuntime *specs.LinuxResources // CPU and memory
	direct    *specs.LinuxResources // the rest
	score     *int                  // oom_score_adj, nil for none
}

func (s *Service) applyLimits(ctx context.Context, c *Container, h handler, l limitSteps) error {
	if err := h.Update(ctx, c.ID(), l.byRuntime); err != nil {
		return err
	}
	if err := s.cgroups.SetResources(s.containerCgroup(c), l.direct); err != nil {
		return err
	}
	if l.score == nil {
		return nil
	}
	return s.adjustOOMScore(c, *l.score)
}

// undoTimeout bounds the restoring of limits after an update that has failed.
const undoTimeout = 30 * time.Second

// undoLimits restores the limits of the recorded state after applyLimits has failed, so that the
// record stays correct. It does not know which step failed, so it repeats all of them with the old
// values.
func (s *Service) undoLimits(ctx context.Context, c *Container, h handler, failed limitSteps) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	before, err := currentSpec(c.State(), s.paths.Bundle(c.ID()))
	if err != nil {
		return fmt.Errorf("restore limits: %w", err)
	}
	var old *specs.LinuxResources
	if before.Linux != nil {
		old = before.Linux.Resources
	}
	errs := []error{
		h.Update(ctx, c.ID(), limits.Earlier(old, failed.byRuntime)),
		s.cgroups.SetResources(s.containerCgroup(c), limits.Earlier(old, failed.direct)),
	}
	if failed.score != nil && before.Process != nil && before.Process.OOMScoreAdj != nil {
		errs = append(errs, s.moveOOMScore(c, *failed.score, *before.Process.OOMScoreAdj))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("restore limits: %w", err)
	}
	return nil
}

// mergeResources returns old with the fields that change sets. It modifies neither.
func mergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	next := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		next = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	next.CpuPeriod = cmp.Or(change.GetCpuPeriod(), next.CpuPeriod)
	next.CpuQuota = cmp.Or(change.GetCpuQuota(), next.CpuQuota)
	next.CpuShares = cmp.Or(change.GetCpuShares(), next.CpuShares)
	next.CpusetCpus = cmp.Or(change.GetCpusetCpus(), next.CpusetCpus)
	next.CpusetMems = cmp.Or(change.GetCpusetMems(), next.CpusetMems)
	next.MemorySwapLimitInBytes = mergeSwap(next, change)
	next.MemoryLimitInBytes = cmp.Or(change.GetMemoryLimitInBytes(), next.MemoryLimitInBytes)
	next.OomScoreAdj = cmp.Or(change.GetOomScoreAdj(), next.OomScoreAdj)
	if len(change.GetHugepageLimits()) > 0 {
		next.HugepageLimits = mergeHugepages(next.HugepageLimits, change.GetHugepageLimits())
	}
	if len(change.GetUnified()) > 0 {
		unified := maps.Clone(next.Unified)
		if unified == nil {
			unified = map[string]string{}
		}
		maps.Copy(unified, change.GetUnified())
		next.Unified = unified
	}
	return next
}

// mergeSwap returns the limit of memory and swap together. If change has only a memory limit, the
// size of the swap stays the same.
func mergeSwap(old, change *runtimeapi.LinuxContainerResources) int64 {
	limit, swap := old.GetMemoryLimitInBytes(), old.GetMemorySwapLimitInBytes()
	switch {
	case change.GetMemorySwapLimitInBytes() != 0:
		return change.GetMemorySwapLimitInBytes()
	case change.GetMemoryLimitInBytes() == 0 || swap <= 0:
		return swap
	case change.GetMemoryLimitInBytes() < 0:
		return -1
	case limit <= 0:
		return max(swap, change.GetMemoryLimitInBytes())
	}
	return change.GetMemoryLimitInBytes() + swap - limit
}

func mergeHugepages(old, change []*runtimeapi.HugepageLimit) []*runtimeapi.HugepageLimit {
	merged := append([]*runtimeapi.HugepageLimit(nil), change...)
	for _, l := range old {
		kept := true
		for _, c := range change {
			kept = kept && c.GetPageSize() != l.GetPageSize()
		}
		if kept {
			merged = append(merged, l)
		}
	}
	return merged
}
