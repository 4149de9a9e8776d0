package cgroup

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	cgroupsv1 "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// SetResources writes the limits of an existing cgroup. Unset fields stay unchanged. It supports
// CPU, memory, pids, huge page and unified fields. Any other field that is set is
// ErrInvalidArgument, as are unified fields on v1. A missing cgroup is ErrNotFound.
func (m *Manager) SetResources(path string, r *specs.LinuxResources) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if !m.exists(path) {
		return fmt.Errorf("limit cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	res, err := convert(r, m.mode.V2)
	if err != nil {
		return fmt.Errorf("limit cgroup %s: %w", path, err)
	}
	if err := m.set(path, res); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", path, err)
	}
	return nil
}

func (m *Manager) set(path string, r *cgroups.Resources) error {
	cg := unitConfig(path)
	cg.Systemd = m.options.Driver == Systemd
	var manager cgroups.Manager
	var err error
	switch {
	case cg.Systemd && m.mode.V2:
		m.keepSwapOff(path, r)
		manager, err = systemd.NewUnifiedManager(cg, m.mode.dir("", path))
	case cg.Systemd:
		manager, err = systemd.NewLegacyManager(cg, m.v1Paths(path))
	case m.mode.V2:
		manager, err = fs2.NewManager(cg, m.mode.dir("", path))
	default:
		manager, err = cgroupsv1.NewManager(cg, m.v1Paths(path))
	}
	if err != nil {
		return err
	}
	return manager.Set(r)
}

// keepSwapOff sets a swap limit of zero in the systemd unit too. The library writes it only to the
// cgroup, and systemd removes it at daemon-reload.
func (m *Manager) keepSwapOff(path string, r *cgroups.Resources) {
	const file = "memory.swap.max"
	if r.MemorySwap <= 0 || r.MemorySwap != r.Memory {
		return
	}
	if _, err := os.Stat(filepath.Join(m.mode.dir("", path), file)); err != nil {
		return // the kernel does not count swap
	}
	unified := map[string]string{file: "0"}
	maps.Copy(unified, r.Unified)
	r.Unified = unified
}

// convert converts OCI resources to the library's form, which needs v2's CPU weight in addition to
// the shares.
func convert(r *specs.LinuxResources, v2 bool) (*cgroups.Resources, error) {
	out := &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true}
	if r == nil {
		return out, nil
	}
	if len(r.Devices) > 0 || r.BlockIO != nil || r.Network != nil || len(r.Rdma) > 0 {
		return nil, fmt.Errorf("device, block I/O, network or RDMA limits: %w", errdefs.ErrInvalidArgument)
	}
	if len(r.Unified) > 0 {
		if !v2 {
			return nil, fmt.Errorf("unified limits on cgroup v1: %w", errdefs.ErrInvalidArgument)
		}
		out.Unified = r.Unified
	}
	if err := convertCPU(out, r.CPU); err != nil {
		return nil, err
	}
	if err := convertMemory(out, r.Memory); err != nil {
		return nil, err
	}
	if r.Pids != nil {
		out.PidsLimit = r.Pids.Limit
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	return out, nil
}

func convertCPU(out *cgroups.Resources, c *specs.LinuxCPU) error {
	if c == nil {
		return nil
	}
	if c.RealtimePeriod != nil || c.RealtimeRuntime != nil {
		return fmt.Errorf("real-time limits: %w", errdefs.ErrInvalidArgument)
	}
	if c.Shares != nil {
		out.CpuShares = *c.Shares
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
	}
	if c.Quota != nil {
		out.CpuQuota = *c.Quota
	}
	if c.Period != nil {
		out.CpuPeriod = *c.Period
	}
	out.CpuBurst, out.CPUIdle = c.Burst, c.Idle
	out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	return nil
}

func convertMemory(out *cgroups.Resources, m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	if m.Kernel != nil || m.KernelTCP != nil || m.DisableOOMKiller != nil { //nolint:staticcheck // deprecated: refused, not used
		return fmt.Errorf("kernel memory and OOM killer settings: %w", errdefs.ErrInvalidArgument)
	}
	if m.Limit != nil {
		out.Memory = *m.Limit
	}
	if m.Swap != nil {
		out.MemorySwap = *m.Swap
	}
	if m.Reservation != nil {
		out.MemoryReservation = *m.Reservation
	}
	out.MemorySwappiness = m.Swappiness
	return nil
}
