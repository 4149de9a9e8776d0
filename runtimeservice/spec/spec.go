// Package spec converts a CRI container request, an image configuration and the node's properties
// to an OCI runtime specification.
//
// The package is pure: the same input gives the same bytes, and nothing is read from or written to
// the machine, except that the library of seccomp profiles reads the kernel's version. The caller
// does all look-ups before, with package lookup, and passes the results.
//
// A request that cannot be fulfilled is an error; no CRI field is ignored silently. There are three
// exceptions, all of them settings that every kubelet sends to every node. SELinux options are
// ignored on a node without SELinux, and a huge page limit of zero without a hugetlb controller. An
// oom_score_adj or resource limit beyond what the kernel allows this process to set is clamped.
//
// The package makes no namespaces, cgroups or mounts, and does not run the OCI runtime.
package spec

import (
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ociVersion is the version of the specifications. It is the oldest sufficient version, because
// crun before 1.9 refuses newer ones. Container uses fields of later versions only if the OCI
// runtime reports them as features.
const ociVersion = "1.0.2"

// Container returns the specification of a container. Requests that violate CRI's rules are
// ErrInvalidArgument, those that this node cannot fulfil ErrFailedPrecondition. A recursive
// read-only mount that the node does not support is ErrRROUnsupported of k8s.io/cri-api/pkg/errors.
func Container(in ContainerInput) (*specs.Spec, error) {
	if err := ValidateContainer(in.Config, in.Pod); err != nil {
		return nil, err
	}
	if err := ValidateImage(in.Image, in.Config.GetMounts()); err != nil {
		return nil, err
	}
	b := &builder{
		in:   in,
		sc:   in.Config.GetLinux().GetSecurityContext(),
		spec: &specs.Spec{Version: ociVersion, Linux: &specs.Linux{}},
	}
	for _, step := range []func() error{
		b.root,
		b.process,
		b.namespaces,
		b.mounts,
		b.paths,
		b.devices,
		b.resources,
		b.seccomp,
		b.apparmor,
		b.annotations,
		b.edits,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("specify container %q: %w", in.Config.GetMetadata().GetName(), err)
		}
	}
	return b.spec, nil
}

// builder is a specification under construction.
type builder struct {
	in   ContainerInput
	sc   *runtimeapi.LinuxContainerSecurityContext
	spec *specs.Spec
}

func (b *builder) root() error {
	if !path.IsAbs(b.in.RootfsPath) {
		return invalid("root filesystem %q is not an absolute path", b.in.RootfsPath)
	}
	b.spec.Root = &specs.Root{Path: b.in.RootfsPath, Readonly: b.sc.GetReadonlyRootfs()}
	return nil
}

func (b *builder) edits() error {
	if names := cdiNames(b.in.Config); len(names) > 0 {
		if b.in.CDI == nil {
			return unsupported("CDI device %q: no CDI on this node", names[0])
		}
		if err := b.in.CDI(b.spec, names); err != nil {
			return fmt.Errorf("inject CDI devices: %w", err)
		}
	}
	for _, edit := range b.in.Edits {
		if err := edit(b.spec); err != nil {
			return err
		}
	}
	return nil
}
