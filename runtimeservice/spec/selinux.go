package spec

import (
	"fmt"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SELinuxLabels makes the process and mount labels of a container from its
// options, else its pod's. Without a level the library reserves a category
// pair of its own; ReleaseSELinux gives it back. On a node without SELinux
// both are "".
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

// ReleaseSELinux gives the category pair of a process label back.
func ReleaseSELinux(process string) { selinux.ReleaseLabel(process) }

// RelabelMounts gives the sources of those mounts that ask for it the
// container's mount label. It does nothing for an empty label.
func RelabelMounts(mounts []*runtimeapi.Mount, sources []string, mountLabel string) error {
	for i, m := range mounts {
		if !m.GetSelinuxRelabel() || mountLabel == "" {
			continue
		}
		if err := label.Relabel(sources[i], mountLabel, false); err != nil {
			return fmt.Errorf("relabel %s: %w", sources[i], err)
		}
	}
	return nil
}
