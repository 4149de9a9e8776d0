package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Version returns the first line of the runtime's --version, such as
// "runc version 1.1.5".
func (r *Runtime) Version(ctx context.Context) (string, error) {
	out, err := r.run(ctx, nil, "--version")
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}

// State returns the runtime's own view of a container; ErrNotFound where it
// does not know it.
func (r *Runtime) State(ctx context.Context, id string) (specs.State, error) {
	out, err := r.run(ctx, nil, "state", id)
	if err != nil {
		return specs.State{}, err
	}
	var s specs.State
	if err := json.Unmarshal(out, &s); err != nil {
		return specs.State{}, fmt.Errorf("parse state of container %s: %w", id, err)
	}
	return s, nil
}

// Update changes the CPU, memory and pids limits of a container. The others
// are ErrInvalidArgument, because not every runtime's update command takes
// them: huge page and unified limits go through cgroup.Manager.SetResources.
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	if len(res.HugepageLimits) > 0 || len(res.Unified) > 0 || len(res.Devices) > 0 || res.Network != nil || len(res.Rdma) > 0 {
		return fmt.Errorf("update container %s: only CPU, memory and pids limits: %w", id, errdefs.ErrInvalidArgument)
	}
	text, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	_, err = r.run(ctx, text, "update", "--resources", "/dev/stdin", id)
	return err
}

// Pause freezes a container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	_, err := r.run(ctx, nil, "pause", id)
	return err
}

// Resume thaws a container.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	_, err := r.run(ctx, nil, "resume", id)
	return err
}
