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

// adjust changes the specification as plugins want it. Nothing that they ask
// for is dropped: what this runtime can't do is ErrFailedPrecondition.
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
	g := generate.SpecGenerator(&generator{spec: s}, generate.WithCDIDeviceInjector(injectCDI),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %q: %w", class, errdefs.ErrFailedPrecondition)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return nil, fmt.Errorf("RDT class %q: %w", class, errdefs.ErrFailedPrecondition)
		}))
	limits := slices.Clone(s.Process.Rlimits)
	memory := *(&generator{spec: s}).memory()
	if err := g.Adjust(a); err != nil {
		return fmt.Errorf("adjust container: %w", err)
	}
	s.Process.Rlimits = mergeRlimits(limits, a.GetRlimits())
	adjustMemory(s, memory, a.GetLinux().GetResources().GetMemory())
	return nil
}

// refuse names what would take the container out of this runtime's sight: its
// cgroup and PID namespace are where its processes are found.
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

// mergeRlimits is limits with those of change in place of others of their type,
// of which OCI allows only one.
func mergeRlimits(limits []specs.POSIXRlimit, change []*api.POSIXRlimit) []specs.POSIXRlimit {
	for _, l := range change {
		limits = slices.DeleteFunc(limits, func(old specs.POSIXRlimit) bool { return old.Type == l.GetType() })
		limits = append(limits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	return limits
}

// adjustMemory sets what the library's generator leaves out. It limits memory
// and swap together with every limit of memory; where they were not limited
// before, which is so where the kernel can't, they still are not.
func adjustMemory(s *specs.Spec, before specs.LinuxMemory, m *api.LinuxMemory) {
	memory := (&generator{spec: s}).memory()
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
