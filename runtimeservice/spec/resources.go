package spec

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (b *builder) devices() error {
	l := b.spec.Linux
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if len(b.in.Config.GetDevices()) > 0 && len(b.in.Devices) == 0 {
		return invalid("device %q has not been resolved", b.in.Config.GetDevices()[0].GetHostPath())
	}
	l.Devices = slices.Clone(b.in.Devices)
	if !b.sc.GetPrivileged() {
		l.Resources.Devices = append(l.Resources.Devices, b.in.DeviceRules...)
		return nil
	}
	l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	requested := map[string]bool{}
	for _, d := range l.Devices {
		requested[d.Path] = true
	}
	for _, d := range b.in.Host.Devices {
		if !requested[d.Path] {
			l.Devices = append(l.Devices, d)
		}
	}
	return nil
}

func (b *builder) resources() error {
	l := b.spec.Linux
	l.CgroupsPath = b.in.CgroupsPath
	r, err := Resources(b.in.Config.GetLinux().GetResources(), b.in.Host)
	if err != nil {
		return err
	}
	r.Devices = l.Resources.Devices
	l.Resources = r
	return nil
}

// Resources converts CRI resources to the OCI form that Container uses; updates and pod cgroups use
// it too. Zero fields stay unset, as CRI specifies. A memory limit without a swap limit forbids
// swap. oom_score_adj is not a cgroup resource and is ignored. Its errors are ErrInvalidArgument,
// or ErrFailedPrecondition for a limit that this node does not support.
func Resources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	var err error
	if out.CPU, err = cpu(r); err != nil {
		return nil, err
	}
	if out.Memory, err = memory(r, h); err != nil {
		return nil, err
	}
	if out.HugepageLimits, err = hugepages(r, h); err != nil {
		return nil, err
	}
	if len(r.GetUnified()) > 0 {
		if !h.CgroupV2 {
			return nil, unsupported("unified resources: this node has cgroup v1")
		}
		for key := range r.GetUnified() {
			if key == "" || strings.ContainsAny(key, "/\x00") || !strings.Contains(key, ".") {
				return nil, invalid("unified resource %q", key)
			}
		}
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out, nil
}

func cpu(r *runtimeapi.LinuxContainerResources) (*specs.LinuxCPU, error) {
	if r.GetCpuPeriod() < 0 || r.GetCpuShares() < 0 || r.GetCpuQuota() < -1 {
		return nil, invalid("negative cpu period, shares or quota")
	}
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := r.GetCpuPeriod(); v != 0 {
		period := uint64(v)
		c.Period = &period
	}
	if v := r.GetCpuQuota(); v != 0 {
		c.Quota = &v
	}
	if v := r.GetCpuShares(); v != 0 {
		shares := uint64(v)
		c.Shares = &shares
	}
	if *c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return c, nil
}

func memory(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 || swap < -1 {
		return nil, invalid("negative memory limit")
	}
	if swap > 0 && limit > 0 && swap < limit {
		return nil, invalid("memory and swap limit %d is below the memory limit %d", swap, limit)
	}
	if limit == 0 && swap == 0 {
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if !h.SwapAccounting {
		// A swap limit equal to the memory limit means "no swap". Without accounting it needs no
		// setting.
		if swap != 0 && swap != limit {
			return nil, unsupported("memory swap limit: this node does not account swap")
		}
		return m, nil
	}
	switch {
	case swap != 0:
		m.Swap = &swap
	case limit != 0:
		m.Swap = &limit
	}
	return m, nil
}

func hugepages(r *runtimeapi.LinuxContainerResources, h Host) ([]specs.LinuxHugepageLimit, error) {
	var out []specs.LinuxHugepageLimit
	for _, l := range r.GetHugepageLimits() {
		if !hugepageSize(l.GetPageSize()) {
			return nil, invalid("huge page size %q", l.GetPageSize())
		}
		if !h.HugetlbCgroup {
			if l.GetLimit() != 0 {
				return nil, unsupported("huge page limit: this node has no hugetlb controller")
			}
			continue
		}
		out = append(out, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	return out, nil
}

// hugepageSize accepts "<number>{KB,MB,GB}", as in the names of the control files.
func hugepageSize(s string) bool {
	number := strings.TrimRight(s, "KMGB")
	unit := strings.TrimPrefix(s, number)
	return number != "" && strings.Trim(number, "0123456789") == "" && slices.Contains([]string{"KB", "MB", "GB"}, unit)
}
