package runtimeservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/spec"
)

// submounts binds what is mounted below the sources of the container's mounts
// to paths below the bundle, for an OCI runtime that leaves it out, in a user
// namespace, when it binds the sources; for others there is nothing to do.
func (s *Service) submounts(p *Pod, c *Container, sources []string) ([]spec.Submount, error) {
	h, err := s.handler(c.Handler)
	if err != nil || !h.features.shallowBinds || p.userNamespace() == nil {
		return nil, err
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []spec.Submount
	for i, m := range c.config().GetMounts() {
		source, err := filepath.EvalSymlinks(sources[i])
		if err != nil {
			return nil, fmt.Errorf("resolve source of mount %s: %w", m.GetContainerPath(), err)
		}
		below := mountedBelow(all, source)
		if len(below) > 0 && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			// Shared binds of ours would take the originals along when they go.
			return nil, fmt.Errorf("mount %s: bidirectional propagation of a source with mounts below it needs crun 1.9 or runc in a user namespace: %w", m.GetContainerPath(), errdefs.ErrFailedPrecondition)
		}
		for _, path := range below {
			target := filepath.Join(s.bundle(c.ID), "submounts", fmt.Sprintf("%d-%d", i, len(out)))
			err := bindBelow(source, path, target, propagationBetween(m))
			switch {
			case err == nil:
				out = append(out, spec.Submount{Mount: i, Path: path, Source: target})
			case !isHidden(err):
				return nil, fmt.Errorf("bind %s below mount %s: %w", path, m.GetContainerPath(), err)
			}
		}
	}
	return out, nil
}

// mountedBelow returns where file systems are mounted below source, a path
// without symbolic links, relative to it, parents before children.
func mountedBelow(all []*mountinfo.Info, source string) []string {
	var below []string
	for _, m := range all {
		if path, ok := strings.CutPrefix(m.Mountpoint, strings.TrimSuffix(source, "/")+"/"); ok && path != "" {
			below = append(below, path)
		}
	}
	slices.Sort(below)
	return slices.Compact(below)
}

// propagationBetween is that of our own bind of a mount's source, for a mount
// that does not ask for the bidirectional one.
func propagationBetween(m *runtimeapi.Mount) uint64 {
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		return unix.MS_SLAVE
	}
	return unix.MS_PRIVATE
}

// bindBelow binds what is mounted at path below source to the new path target.
// Another container may have the source too, and put symbolic links in place
// of directories: they are not followed.
func bindBelow(source, path, target string, propagation uint64) error {
	root, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	at, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	tree, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: propagation}); err != nil {
		return fmt.Errorf("set propagation of mount: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(target), privateMode); err != nil {
		return err
	}
	return attachTree(tree, target)
}

// isHidden says whether bindBelow failed because the mount cannot be reached:
// it has gone since, or another one covers it.
func isHidden(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
