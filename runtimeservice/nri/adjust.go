package nri

import (
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// adjust changes the specification as plugins request. It ignores no request: one that this runtime
// cannot honour is ErrFailedPrecondition.
func adjust(s *specs.Spec, a *api.ContainerAdjustment, injectCDI func(*specs.Spec, []string) error) error {
	if a = a.Strip(); a == nil {
		return nil
	}
	if err := refuse(a); err != nil {
		return err
	}
	if injectCDI == nil {
		injectCDI = func(_ *specs.Spec, names []string) error {
			return fmt.Errorf("inject CDI device %s: no CDI on this node: %w", names[0], errdefs.ErrFailedPrecondition)
		}
	}
	g := generate.SpecGenerator(newGenerator(s), generate.WithCDIDeviceInjector(injectCDI),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %q: %w", class, errdefs.ErrFailedPrecondition)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return nil, fmt.Errorf("RDT class %q: %w", class, errdefs.ErrFailedPrecondition)
		}))
	limits := slices.Clone(s.Process.Rlimits)
	memory := *memoryOf(s)
	if err := g.Adjust(a); err != nil {
		return fmt.Errorf("adjust container: %w", err)
	}
	s.Process.Rlimits = mergeRlimits(limits, a.GetRlimits())
	adjustMemory(s, memory, a.GetLinux().GetResources().GetMemory())
	return nil
}

// refuse rejects adjustments after which this runtime could not find the container's processes any
// more. It finds them by the cgroup and the PID namespace.
func refuse(a *api.ContainerAdjustment) error {
	var errs []error
	if path := a.GetLinux().GetCgroupsPath(); path != "" {
		errs = append(errs, fmt.Errorf("move container to cgroup %s: %w", path, errdefs.ErrFailedPrecondition))
	}
	for _, ns := range a.GetLinux().GetNamespaces() {
		if kind, _ := ns.IsMarkedForRemoval(); kind == string(specs.PIDNamespace) {
			errs = append(errs, fmt.Errorf("change the PID namespace of a container: %w", errdefs.ErrFailedPrecondition))
		}
	}
	return errors.Join(errs...)
}

// mergeRlimits returns limits with those of change. OCI allows only one limit of each type, so a
// changed limit replaces the old one.
func mergeRlimits(limits []specs.POSIXRlimit, change []*api.POSIXRlimit) []specs.POSIXRlimit {
	for _, l := range change {
		limits = slices.DeleteFunc(limits, func(old specs.POSIXRlimit) bool { return old.Type == l.GetType() })
		limits = append(limits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	return limits
}

// adjustMemory sets the fields that the library's generator leaves out. The generator also limits
// swap with every memory limit. If swap was not limited before, for example because the kernel does
// not account it, adjustMemory removes that limit.
func adjustMemory(s *specs.Spec, before specs.LinuxMemory, m *api.LinuxMemory) {
	memory := memoryOf(s)
	if before.Swap == nil {
		memory.Swap = nil
	}
	if m.GetReservation() != nil {
		memory.Reservation = m.GetReservation().Get()
	}
	if m.GetSwap() != nil {
		memory.Swap = m.GetSwap().Get()
	}
	if m.GetSwappiness() != nil {
		memory.Swappiness = m.GetSwappiness().Get()
	}
	if m.GetDisableOomKiller() != nil {
		memory.DisableOOMKiller = m.GetDisableOomKiller().Get()
	}
}

// memoryOf returns the specification's memory limits. It adds empty ones if there are none.
func memoryOf(s *specs.Spec) *specs.LinuxMemory {
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if s.Linux.Resources.Memory == nil {
		s.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	return s.Linux.Resources.Memory
}
