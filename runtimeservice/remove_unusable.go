package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec"
	"github.com/micarun/mica/runtimeservice/state"
)

// containerPlace is what is known of a container whose record cannot be used. Every field
// may be "".
type containerPlace struct {
	podID, cgroup string
	name, image   string
}

// placeOf finds a container's place. It reads the record, the specification beside the record, the
// one in the bundle, and at last the cgroups of pods. Call it before the sweep, which removes
// bundles and cgroups.
func (s *Service) placeOf(u unusable) containerPlace {
	if u.container != nil {
		return containerPlace{podID: u.container.PodID(), cgroup: s.containerCgroup(u.container)}
	}
	for _, dir := range []string{u.dir, s.paths.Bundle(u.id)} {
		var ociSpec specs.Spec
		if err := jsonfile.Read(filepath.Join(dir, specFile), &ociSpec); err != nil {
			continue
		}
		if known := ociSpec.Annotations; known[spec.PodIDAnnotation] != "" {
			return containerPlace{
				podID: known[spec.PodIDAnnotation], cgroup: s.cgroupIn(&ociSpec, u.id),
				name: known[spec.NameAnnotation], image: known[spec.ImageAnnotation],
			}
		}
	}
	for podID, parent := range s.podCgroups() {
		cgroup := s.cgroups.ContainerDir(parent, u.id)
		if dir := s.cgroups.MemoryDir(cgroup); dir != "" && exists(dir) {
			return containerPlace{podID: podID, cgroup: cgroup}
		}
	}
	return containerPlace{}
}

// cgroupIn returns the cgroup in the specification, "" if this service does not use it for the
// container. A plugin may have set a cgroup that has other processes.
func (s *Service) cgroupIn(ociSpec *specs.Spec, id string) string {
	if ociSpec.Linux == nil {
		return ""
	}
	named := ociSpec.Linux.CgroupsPath
	parent := path.Dir(named)
	if slice, _, ok := strings.Cut(named, ":"); ok {
		parent = slice
	}
	parent, err := s.cgroups.PodParent(parent, id)
	if err != nil || s.cgroups.ContainerPath(parent, id) != named {
		return ""
	}
	return s.cgroups.ContainerDir(parent, id)
}

// podCgroups returns the cgroups of pods by pod ID, those of pods with unusable records
// included where the daemon has made them.
func (s *Service) podCgroups() map[string]string {
	parents := map[string]string{}
	if owner, err := s.owner(); err == nil {
		if marked, err := s.cgroups.ListPods(owner); err == nil {
			parents = marked
		}
	}
	for _, p := range s.pods.All() {
		parents[p.ID()] = p.CgroupParent()
	}
	return parents
}

// removeUnusableContainer removes a container whose record cannot be used. An unknown ID
// is no error.
func (s *Service) removeUnusableContainer(ctx context.Context, id string) error {
	u, ok := s.unusable.get(state.ContainerKind, id)
	if !ok {
		return nil
	}
	return s.detached(ctx, s.opts.TeardownTimeout, operation{"remove container", u.subject()}, func(ctx context.Context) error {
		return s.eraseUnusable(ctx, u)
	})
}

// removeUnusablePod removes a pod whose record cannot be used, with its containers. An
// unknown ID is no error.
func (s *Service) removeUnusablePod(ctx context.Context, id string) error {
	u, ok := s.unusable.get(state.PodKind, id)
	if !ok {
		return nil
	}
	return s.detached(ctx, s.opts.TeardownTimeout, operation{"remove pod", u.subject()}, func(ctx context.Context) error {
		if err := s.eraseUnusableOf(ctx, u.id); err != nil {
			return err
		}
		return s.eraseUnusable(ctx, u)
	})
}

func (u unusable) subject() operations.Subject {
	if u.kind == state.PodKind {
		return operations.Subject{Pod: u.id}
	}
	return operations.Subject{Pod: u.place.podID, Container: u.id}
}

// eraseUnusableOf erases the containers of a pod whose records cannot be used.
func (s *Service) eraseUnusableOf(ctx context.Context, podID string) error {
	for _, u := range s.unusable.all() {
		if u.kind == state.ContainerKind && u.place.podID == podID {
			if err := s.eraseUnusable(ctx, u); err != nil {
				return err
			}
		}
	}
	return nil
}

// eraseUnusable removes everything of the pod or container that the sweep has left. The record is
// last, so that a failed removal can be repeated.
func (s *Service) eraseUnusable(ctx context.Context, u unusable) error {
	operations.Enter(ctx, "wait for the sweep")
	select {
	case <-s.recoveries.over: // until then the sweep tears it down
	case <-ctx.Done():
		return fmt.Errorf("remove %s %s: wait for the end of the start's sweep: %w", u.kind, u.id, ctx.Err())
	}
	if err := u.op.Lock(ctx, "remove "+u.kind+" "+u.id); err != nil {
		return err
	}
	defer u.op.Unlock()
	if _, ok := s.unusable.get(u.kind, u.id); !ok {
		return nil // the call before this one has removed it
	}
	erase := s.eraseUnusableContainer
	if u.kind == state.PodKind {
		erase = s.eraseUnusablePod
	}
	if err := erase(ctx, u); err != nil {
		return fmt.Errorf("remove %s %s, whose record cannot be used: %w", u.kind, u.id, err)
	}
	if err := overlay.RemoveTree(ctx, u.dir); err != nil { // with a container's volumes
		return fmt.Errorf("remove unusable record of %s %s: %w", u.kind, u.id, err)
	}
	s.unusable.remove(u.id)
	return nil
}

func (s *Service) eraseUnusableContainer(ctx context.Context, u unusable) error {
	operations.Enter(ctx, "delete container")
	remove := func(ctx context.Context) error { return s.keeper.Delete(ctx, u.id) }
	if u.place.cgroup == "" {
		if err := remove(ctx); err != nil {
			return fmt.Errorf("delete container: %w", err)
		}
	} else {
		if err := s.untilDead(ctx, dying{cgroup: u.place.cgroup}, remove); err != nil {
			return fmt.Errorf("delete container: %w", err)
		}
		if err := s.removeCgroup(ctx, u.place.cgroup); err != nil {
			return err
		}
	}
	operations.Enter(ctx, "remove writable layer")
	if err := clearDir(ctx, s.paths.Bundle(u.id)); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	if u.container != nil {
		for _, release := range u.container.held {
			release()
		}
		u.container.held = nil
	}
	if err := s.layers.Remove(ctx, u.id); err != nil {
		return fmt.Errorf("remove writable layer: %w", err)
	}
	// Its image may have been removed before it, and has left its layers.
	return s.images.Sweep(ctx)
}

func (s *Service) eraseUnusablePod(ctx context.Context, u unusable) error {
	operations.Enter(ctx, "end init")
	if err := s.keeper.Delete(ctx, u.id); err != nil {
		return fmt.Errorf("end init: %w", err)
	}
	operations.Enter(ctx, "delete network")
	dir := s.paths.PodState(u.id)
	if err := s.network.Del(ctx, network.Pod{ID: u.id, NetNS: filepath.Join(dir, podns.Net)}); err != nil && !errors.Is(err, network.ErrPluginMissing) {
		return err
	}
	operations.Enter(ctx, "remove namespaces and cgroup")
	if err := clearDir(ctx, dir); err != nil {
		return fmt.Errorf("remove namespaces: %w", err)
	}
	if parent, ok := s.podCgroups()[u.id]; ok {
		return s.removeCgroup(ctx, parent)
	}
	if u.pod != nil { // the pod's cgroup itself is the kubelet's
		return s.cgroups.RemoveInit(ctx, u.pod.CgroupParent())
	}
	return nil
}

// removeCgroup kills what is in the cgroup and removes it.
func (s *Service) removeCgroup(ctx context.Context, cgroup string) error {
	if err := s.cgroups.KillAll(ctx, cgroup); err != nil {
		return err
	}
	return s.cgroups.RemoveParent(ctx, cgroup)
}
