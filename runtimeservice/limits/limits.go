// Package limits combines resource limits in the form of an OCI specification: those of an update
// with the ones before it, and those that undo an update. It is pure; the OCI runtime and package
// cgroup set limits.
package limits

import (
	"cmp"
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Merge returns old with every limit that now sets. It modifies neither.
func Merge(old, now *specs.LinuxResources) *specs.LinuxResources {
	out := specs.LinuxResources{}
	if old != nil {
		out = *old
	}
	if now == nil {
		return &out
	}
	out.CPU, out.Memory = withCPU(out.CPU, now.CPU), withMemory(out.Memory, now.Memory)
	out.Pids = cmp.Or(now.Pids, out.Pids)
	if len(now.HugepageLimits) > 0 {
		out.HugepageLimits = now.HugepageLimits
	}
	if len(now.Unified) > 0 {
		unified := maps.Clone(out.Unified)
		if unified == nil {
			unified = map[string]string{}
		}
		maps.Copy(unified, now.Unified)
		out.Unified = unified
	}
	return &out
}

func withCPU(old, now *specs.LinuxCPU) *specs.LinuxCPU {
	if old == nil || now == nil {
		return cmp.Or(now, old)
	}
	out := *old
	out.Shares, out.Quota, out.Period = cmp.Or(now.Shares, old.Shares), cmp.Or(now.Quota, old.Quota), cmp.Or(now.Period, old.Period)
	out.Cpus, out.Mems = cmp.Or(now.Cpus, old.Cpus), cmp.Or(now.Mems, old.Mems)
	return &out
}

func withMemory(old, now *specs.LinuxMemory) *specs.LinuxMemory {
	if old == nil || now == nil {
		return cmp.Or(now, old)
	}
	out := *old
	out.Limit, out.Swap = cmp.Or(now.Limit, old.Limit), cmp.Or(now.Swap, old.Swap)
	out.Reservation, out.Swappiness = cmp.Or(now.Reservation, old.Reservation), cmp.Or(now.Swappiness, old.Swappiness)
	return &out
}

// Values that mean no limit, or the kernel's default, for limits that a container did not have.
const (
	unlimited     = -1
	defaultShares = 1024
	defaultPeriod = 100_000
)

// Earlier returns the values in old of every limit in set, which undo set. It leaves out CPU
// sets, swappiness, huge page and unified limits that old does not have, because their defaults are
// not known.
func Earlier(old, set *specs.LinuxResources) *specs.LinuxResources {
	if old == nil {
		old = &specs.LinuxResources{}
	}
	out := &specs.LinuxResources{}
	if set.CPU != nil {
		out.CPU = earlierCPU(old.CPU, set.CPU)
	}
	if set.Memory != nil {
		out.Memory = earlierMemory(old.Memory, set.Memory)
	}
	if set.Pids != nil {
		limit := int64(unlimited)
		out.Pids = &specs.LinuxPids{Limit: &limit}
		if old.Pids != nil {
			out.Pids = old.Pids
		}
	}
	for _, l := range set.HugepageLimits {
		for _, o := range old.HugepageLimits {
			if o.Pagesize == l.Pagesize {
				out.HugepageLimits = append(out.HugepageLimits, o)
			}
		}
	}
	for key := range set.Unified {
		if value, ok := old.Unified[key]; ok {
			if out.Unified == nil {
				out.Unified = map[string]string{}
			}
			out.Unified[key] = value
		}
	}
	return out
}

func earlierCPU(old, set *specs.LinuxCPU) *specs.LinuxCPU {
	if old == nil {
		old = &specs.LinuxCPU{}
	}
	out := &specs.LinuxCPU{
		Shares: earlier(set.Shares, old.Shares, defaultShares),
		Quota:  earlier(set.Quota, old.Quota, unlimited),
		Period: earlier(set.Period, old.Period, defaultPeriod),
	}
	if set.Cpus != "" {
		out.Cpus = old.Cpus
	}
	if set.Mems != "" {
		out.Mems = old.Mems
	}
	return out
}

func earlierMemory(old, set *specs.LinuxMemory) *specs.LinuxMemory {
	if old == nil {
		old = &specs.LinuxMemory{}
	}
	out := &specs.LinuxMemory{
		Limit:       earlier(set.Limit, old.Limit, unlimited),
		Swap:        earlier(set.Swap, old.Swap, unlimited),
		Reservation: earlier(set.Reservation, old.Reservation, unlimited),
	}
	if set.Swappiness != nil {
		out.Swappiness = old.Swappiness
	}
	return out
}

// earlier returns the value that undoes set: old, or none if there was no limit before. It returns nil
// if set is nil.
func earlier[T any](set, old *T, none T) *T {
	switch {
	case set == nil:
		return nil
	case old == nil:
		return &none
	}
	return old
}
