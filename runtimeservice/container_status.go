package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// ContainerStatus returns the status of one container. A container whose record cannot be used is
// in state unknown. Errors: ErrNotFound, ErrInvalidArgument.
func (s *Service) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if u, ok := s.unusable.instead(err, state.ContainerKind, req.GetContainerId()); ok {
		return u.containerStatus(req.GetVerbose())
	}
	if err != nil {
		return nil, fmt.Errorf("container status: %w", err)
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if req.GetVerbose() {
		resp.Info, err = s.containerInfo(c)
	}
	return resp, err
}

// containerInfo returns the verbose information, with the fields that tools read from other
// runtimes: sandboxID, pid, privileged, config, runtimeSpec.
func (s *Service) containerInfo(c *Container) (map[string]string, error) {
	st := c.State()
	info := map[string]any{
		"sandboxID":      c.PodID(),
		"pid":            st.Pid,
		"phase":          st.Phase(),
		"imageID":        c.Record().ImageID,
		"snapshotter":    "overlay2",
		"snapshotKey":    c.ID(),
		"bundle":         s.paths.Bundle(c.ID()),
		"cgroup":         s.containerCgroup(c),
		"runtimeHandler": c.Record().Handler,
		"runtimeType":    s.runtimeType(c.Record().Handler),
		"privileged":     c.Config().GetLinux().GetSecurityContext().GetPrivileged(),
		"config":         c.Config(),
	}
	if st.Phase() == state.Exited {
		info["pid"] = 0 // the number may be another process's by now
	}
	spec, err := currentSpec(st, c.Dir())
	switch {
	case err == nil:
		info["runtimeSpec"] = spec
	case !errors.Is(err, os.ErrNotExist): // which one that is just being made lacks
		return nil, fmt.Errorf("container %s: %w", c.ID(), err)
	}
	return infoJSON(info)
}
