package lookup

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
)

// SELinuxLabels returns a container's process and mount labels for the container's options or,
// without these, the pod's. If they contain no level, the library reserves a unique category pair;
// ReleaseSELinux releases it. On a node without SELinux both labels are "".
func SELinuxLabels(container, pod *runtimeapi.SELinuxOption) (process, mount string, err error) {
	if !selinux.GetEnabled() {
		return "", "", nil
	}
	o := container
	if o == nil {
		o = pod
	}
	process, mount, err = label.InitLabels(selinuxOptions(o))
	if err != nil {
		return "", "", fmt.Errorf("make SELinux labels: %w", err)
	}
	return process, mount, nil
}

// ShareLevel returns the container's options or, without these, the pod's. If they contain no
// level, it adds the level of the pod's process label, so that the containers of a pod can read
// each other's files.
func ShareLevel(container, pod *runtimeapi.SELinuxOption, podLabel string) *runtimeapi.SELinuxOption {
	o := container
	if o == nil {
		o = pod
	}
	return &runtimeapi.SELinuxOption{
		User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: cmp.Or(o.GetLevel(), SELinuxLevel(podLabel)),
	}
}

// SELinuxLevel returns the level of a label user:role:type:level, or "" if there is none.
func SELinuxLevel(label string) string {
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 4 {
		return ""
	}
	return parts[3]
}

// ReserveSELinux reserves the category pair of a process label made before a restart, so that no
// other pod gets it. Labels of the same pod share the pair.
func ReserveSELinux(process string) error {
	if err := selinux.ReserveLabelV2(process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		return fmt.Errorf("reserve SELinux level of %q: %w", process, err)
	}
	return nil
}

func selinuxOptions(o *runtimeapi.SELinuxOption) []string {
	var options []string
	for _, part := range []struct{ key, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		if part.value != "" {
			options = append(options, part.key+":"+part.value)
		}
	}
	return options
}

// ReleaseSELinux releases the category pair of a process label.
func ReleaseSELinux(process string) { selinux.ReleaseLabel(process) }

// Relabel sets the container's mount label on the sources of the mounts that request it, both the
// request's and the runtime's own. It does nothing without a label. It skips file systems without
// extended attributes.
func Relabel(in spec.ContainerInput) error {
	if in.MountLabel == "" {
		return nil
	}
	for _, source := range relabelSources(in) {
		if err := label.Relabel(source, in.MountLabel, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("relabel %s: %w", source, err)
		}
	}
	return nil
}

func relabelSources(in spec.ContainerInput) []string {
	var sources []string
	for i, m := range in.Config.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetImage() != nil { // images are read-only
			continue
		}
		source := m.GetHostPath()
		if in.MountSources != nil {
			source = in.MountSources[i]
		}
		sources = append(sources, source)
	}
	for _, m := range in.Mounts {
		if m.Relabel {
			sources = append(sources, m.Source)
		}
	}
	return sources
}
