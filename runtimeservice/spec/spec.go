// Package spec turns a CRI container request, an image configuration and the
// facts about the node into an OCI runtime specification.
//
// Container and Process are pure: the same input gives the same bytes, nothing
// is read from or written to the machine. What has to be looked up is done
// before, by the functions of the files host.go, user.go and prepare.go, and
// handed in. A request that cannot be honoured is an error; no field of CRI is
// dropped in silence.
//
// The package makes no namespaces, cgroups or mounts, and does not talk to the
// OCI runtime.
package spec

import (
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container returns the specification for a container. Requests that break
// CRI's rules give ErrInvalidArgument, those that this node cannot honour
// ErrFailedPrecondition.
func Container(in ContainerInput) (*specs.Spec, error) {
	return nil, errors.ErrUnsupported
}

// ProcessArgs describes a process to run in an existing container.
type ProcessArgs struct {
	// Spec is the container's own specification; it is not changed.
	Spec *specs.Spec
	// Args is the command line; it must not be empty.
	Args []string
	// Terminal asks for a pseudo terminal.
	Terminal bool
}

// Process returns the process for an exec in the container of a.Spec: its
// user, environment, limits and confinement, with the given command line.
func Process(a ProcessArgs) (*specs.Process, error) {
	return nil, errors.ErrUnsupported
}

// ValidateContainer checks a container request against CRI's rules, without
// looking at the node. Its errors are ErrInvalidArgument.
func ValidateContainer(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	return errors.ErrUnsupported
}

// ValidatePod checks a pod request against CRI's rules, without looking at
// the node. Its errors are ErrInvalidArgument.
func ValidatePod(pod *runtimeapi.PodSandboxConfig) error { return errors.ErrUnsupported }

// Resources turns CRI resources into the OCI form that Container would use,
// for updates and for pod cgroups.
func Resources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	return nil, errors.ErrUnsupported
}
