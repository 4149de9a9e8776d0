// Package spec turns a CRI container request, an image configuration and the
// facts about the node into an OCI runtime specification.
//
// Container, Process, Resources and the validators are pure: the same input
// gives the same bytes, nothing is read from or written to the machine. What
// has to be looked up is done before and handed in, by the functions of
// host.go (the node), user.go (users inside a root filesystem), prepare.go
// (mount sources, device nodes, seccomp files), selinux.go and apparmor.go.
//
// A request that cannot be honoured is an error; no field of CRI is dropped in
// silence. There are three stated exceptions, all of them things that every
// kubelet sends to every node: SELinux options on a node without SELinux, a
// zero huge page limit where no hugetlb controller exists, and an
// oom_score_adj or resource limit beyond what the kernel lets this process
// give, which is clamped.
//
// The package makes no namespaces, cgroups or mounts, and does not talk to the
// OCI runtime.
package spec

import (
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ociVersion is what specifications declare. It is the oldest that says all
// that nodes need, because crun before 1.9 refuses any newer one; the fields
// of later versions that Container uses are refused unless the OCI runtime
// lists them as features.
const ociVersion = "1.0.2"

// Container returns the specification for a container. Requests that break
// CRI's rules give ErrInvalidArgument, those that this node cannot honour
// ErrFailedPrecondition, and recursive read-only mounts that it lacks
// ErrRROUnsupported of k8s.io/cri-api/pkg/errors.
func Container(in ContainerInput) (*specs.Spec, error) {
	if err := ValidateContainer(in.Config, in.Pod); err != nil {
		return nil, err
	}
	if err := ValidateImage(in.Image); err != nil {
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

// builder is the specification in the making.
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
