package runtimeservice

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

// labels are the SELinux labels of a container; "" on a node without SELinux.
type labels struct{ process, mount string }

// podLabel returns the process label for a new pod. Unless the pod names a level, the label has a
// new one, which is reserved until ReleaseSELinux.
func podLabel(cfg *runtimeapi.PodSandboxConfig) (string, error) {
	process, _, err := lookup.SELinuxLabels(nil, cfg.GetLinux().GetSecurityContext().GetSelinuxOptions())
	return process, err
}

// containerLabels returns the labels for a container, and persists them before their first use.
// They have the pod's level unless the container names another.
func (s *Service) containerLabels(p *Pod, c *Container) (labels, error) {
	options := lookup.ShareLevel(c.Config().GetLinux().GetSecurityContext().GetSelinuxOptions(),
		p.Config().GetLinux().GetSecurityContext().GetSelinuxOptions(), p.Record().SELinux)
	process, mount, err := lookup.SELinuxLabels(options, nil)
	if err != nil || process == "" {
		return labels{mount: mount}, err
	}
	err = c.Update(func(st *state.ContainerState) error { st.SELinux = process; return nil })
	if err != nil {
		lookup.ReleaseSELinux(process)
	}
	return labels{process: process, mount: mount}, err
}

// releaseLabel releases the level of a removed container if it differs from the pod's.
func (s *Service) releaseLabel(c *Container) {
	label := c.State().SELinux
	if pod, err := s.pods.Get(c.PodID()); err == nil && lookup.SELinuxLevel(pod.Record().SELinux) == lookup.SELinuxLevel(label) {
		return
	}
	lookup.ReleaseSELinux(label)
}
