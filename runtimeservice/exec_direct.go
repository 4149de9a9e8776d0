package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/spec"
)

// execTemplate is what execs need of a container's specification, which is mostly a seccomp profile.
type execTemplate struct {
	process *specs.Process
	profile oci.Profile

	modified time.Time // of the bundle's file
}

// execTemplate returns the template of the container's bundle.
func (s *Service) execTemplate(c *Container) (*execTemplate, error) {
	file := filepath.Join(s.paths.Bundle(c.ID()), specFile)
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the container has just ended: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	if known := c.execs.Load(); known != nil && known.modified.Equal(info.ModTime()) {
		return known, nil
	}
	bundle, err := readBundle(file)
	if err != nil {
		return nil, err
	}
	t := &execTemplate{process: bundle.Process, modified: info.ModTime()}
	if t.profile, err = oci.NewProfile(bundle); err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	c.execs.Store(t)
	return t, nil
}

// with returns the container's own process with another command line.
func (t *execTemplate) with(run execRun) (*specs.Process, error) {
	return spec.Process(spec.ProcessArgs{Spec: &specs.Spec{Process: t.process}, Args: run.cmd, Terminal: run.tty})
}

func readBundle(file string) (*specs.Spec, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the container has just ended: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	var bundle specs.Spec
	if err := json.Unmarshal(data, &bundle); err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	return &bundle, nil
}

// directExec returns where a command is started without the OCI runtime; nil if the runtime has to
// start it. The caller closes its Init.
func (s *Service) directExec(c *Container, h handler, profile oci.Profile) *oci.Direct {
	// A runtime that is not known by name, such as one with virtual machines, may do more.
	if s.opts.ExecByRuntime || oci.StartPipe(h.features.oci) == "" || s.refuseFrozen(c) != nil {
		return nil
	}
	init, err := s.keeper.Init(c.ID())
	if err != nil || init == nil {
		return nil
	}
	d := &oci.Direct{Profile: profile, Init: init, ProbeCgroup: s.probeCgroup}
	d.Unified, d.V1 = s.cgroups.Dirs(s.containerCgroup(c))
	d.Seccomp = func() (*specs.LinuxSeccomp, error) {
		bundle, err := readBundle(filepath.Join(s.paths.Bundle(c.ID()), specFile))
		if err != nil {
			return nil, err
		}
		return bundle.Linux.Seccomp, nil
	}
	return d
}

// probeCgroup makes the parent of the cgroup of a container that shows what the OCI runtime makes of
// a seccomp profile. It has the form of a pod's cgroup, so the sweep finds it after a crash.
func (s *Service) probeCgroup(ctx context.Context) (path string, release func(), err error) {
	id := newID()
	parent, err := s.cgroups.PodParent("", id)
	if err != nil {
		return "", nil, err
	}
	release = func() {
		err := s.removeCgroup(context.WithoutCancel(ctx), parent)
		if err = errors.Join(err, s.removeDefaultCgroup()); err != nil {
			klog.FromContext(ctx).Error(err, "Removing cgroup failed", "path", parent)
		}
	}
	if err := s.makeOwnCgroup(ctx, parent); err != nil {
		release()
		return "", nil, err
	}
	return s.cgroups.ContainerPath(parent, id), release, nil
}
