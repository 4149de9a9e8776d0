package spec

import (
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PrepareMounts resolves the sources of CRI mounts: symbolic links are
// followed, a missing host path is made as a directory, and propagation is
// checked against the mount that the source lies on. It returns one source
// for each mount; that of an image mount is "" for the caller to fill in.
func PrepareMounts(mounts []*runtimeapi.Mount) ([]string, error) { return nil, errors.ErrUnsupported }

// ResolveDevices reads the device nodes for CRI device requests. A directory
// stands for all device nodes below it.
func ResolveDevices(devices []*runtimeapi.Device) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	return nil, nil, errors.ErrUnsupported
}

// ReadSeccomp returns the text of the Localhost seccomp profile that the
// security context names, and nil where it names none.
func ReadSeccomp(sc *runtimeapi.LinuxContainerSecurityContext) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// ResolveUser finds the user of a container: from the security context, else
// from image (the USER of the image, "name[:group]" or numbers), inside the
// root filesystem at rootfs.
func ResolveUser(rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, image string) (User, error) {
	return User{}, errors.ErrUnsupported
}

// DetectHost reads the facts about this node and process.
func DetectHost() (Host, error) { return Host{}, errors.ErrUnsupported }
