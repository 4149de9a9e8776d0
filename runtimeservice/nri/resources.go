package nri

import (
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fromCRI returns the protocol's message for CRI's resources. Fields that are zero stay unset.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{
		Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Unified: maps.Clone(r.GetUnified()),
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		out.Memory.Swap = api.Int64(v)
	}
	if v := r.GetCpuShares(); v != 0 {
		out.Cpu.Shares = api.UInt64(v)
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		out.Cpu.Period = api.UInt64(v)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// toCRI returns the part of r that CRI can express, or nil if r sets none of it.
func toCRI(r *api.LinuxResources) *runtimeapi.LinuxContainerResources {
	if r = r.Strip(); r == nil {
		return nil
	}
	out := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes:     r.GetMemory().GetLimit().GetValue(),
		MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
		CpuShares:              int64(r.GetCpu().GetShares().GetValue()),
		CpuQuota:               r.GetCpu().GetQuota().GetValue(),
		CpuPeriod:              int64(r.GetCpu().GetPeriod().GetValue()),
		CpusetCpus:             r.GetCpu().GetCpus(),
		CpusetMems:             r.GetCpu().GetMems(),
		Unified:                maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// updateOf converts a plugin's request to change an existing container. Limits that cannot be
// changed after the container's creation are ErrFailedPrecondition.
func updateOf(u *api.ContainerUpdate) (Update, error) {
	r := u.GetLinux().GetResources()
	out := Update{ID: u.GetContainerId(), Resources: toCRI(r), Direct: &specs.LinuxResources{}}
	if out.Resources == nil {
		out.Resources = &runtimeapi.LinuxContainerResources{}
	}
	for what, asked := range map[string]bool{
		"block I/O class":              r.GetBlockioClass() != nil,
		"RDT class":                    r.GetRdtClass() != nil,
		"device rules":                 len(r.GetDevices()) > 0,
		"real-time scheduling":         r.GetCpu().GetRealtimePeriod() != nil || r.GetCpu().GetRealtimeRuntime() != nil,
		"kernel memory and OOM killer": r.GetMemory().GetKernel() != nil || r.GetMemory().GetKernelTcp() != nil || r.GetMemory().GetDisableOomKiller() != nil,
	} {
		if asked {
			return out, fmt.Errorf("%s of an existing container cannot be changed: %w", what, errdefs.ErrFailedPrecondition)
		}
	}
	if pids := r.GetPids(); pids != nil {
		limit := pids.GetLimit()
		out.Direct.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if m := r.GetMemory(); m.GetReservation() != nil || m.GetSwappiness() != nil {
		out.Direct.Memory = &specs.LinuxMemory{Reservation: m.GetReservation().Get(), Swappiness: m.GetSwappiness().Get()}
	}
	return out, nil
}
