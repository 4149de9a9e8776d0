package runtimeservice

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/runtimeservice/spec"
)

// submounts binds the mounts below the sources of the container's mounts to paths below the bundle.
// It does so only for OCI runtimes that omit them when they bind the sources in a user namespace.
func (s *Service) submounts(p *Pod, c *Container, sources []string) ([]spec.Submount, error) {
	h, err := s.handler(c.Record().Handler)
	if err != nil || !h.features.shallowBinds || p.userNamespace() == nil {
		return nil, err
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []spec.Submount
	for i, m := range c.Config().GetMounts() {
		source, err := filepath.EvalSymlinks(sources[i])
		if err != nil {
			return nil, fmt.Errorf("resolve source of mount %s: %w", m.GetContainerPath(), err)
		}
		below := mounts.Below(all, source)
		if len(below) > 0 && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			// Unmounting shared binds would unmount the originals too.
			return nil, fmt.Errorf("mount %s: bidirectional propagation of a source with mounts below it needs crun 1.9 or runc in a user namespace: %w", m.GetContainerPath(), errdefs.ErrFailedPrecondition)
		}
		for _, path := range below {
			target := filepath.Join(s.paths.Bundle(c.ID()), "submounts", fmt.Sprintf("%d-%d", i, len(out)))
			err := mounts.BindBelow(source, path, target, propagationBetween(m))
			switch {
			case err == nil:
				out = append(out, spec.Submount{Mount: i, Path: path, Source: target})
			case !mounts.IsHidden(err):
				return nil, fmt.Errorf("bind %s below mount %s: %w", path, m.GetContainerPath(), err)
			}
		}
	}
	return out, nil
}

// propagationBetween returns the propagation of Mica's own bind of a mount's source, for a mount
// that does not request bidirectional propagation.
func propagationBetween(m *runtimeapi.Mount) uint64 {
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		return unix.MS_SLAVE
	}
	return unix.MS_PRIVATE
}
