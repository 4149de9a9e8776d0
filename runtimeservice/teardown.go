package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

// tearDownPod removes all resources of a pod except its record: processes, network, namespaces,
// mounts, cgroup. It is idempotent and reads only the record and the disk. So a failed start, Stop,
// Remove and recovery can call it at any point of the pod's life. After an error it continues with
// the other steps, and returns all errors. The caller holds p.op.
func (s *Service) tearDownPod(ctx context.Context, p *Pod) error {
	released, ended := s.stopAllContainers(ctx, p)
	var errs []error
	operations.Enter(ctx, "end init")
	if ended == nil {
		s.plugins.StopPod(ctx, p.ID())
	}
	if err := s.endInit(ctx, p); err != nil {
		errs = append(errs, fmt.Errorf("end init: %w", err))
	}
	errs = append(errs, failpoint.Hit("pod-processes-ended"))
	operations.Enter(ctx, "delete network")
	errs = append(errs, s.deleteNetwork(ctx, p))
	errs = append(errs, failpoint.Hit("pod-network-down"))
	operations.Enter(ctx, "release containers")
	errs = append(errs, released())
	operations.Enter(ctx, "remove namespaces and cgroup")
	dir := s.paths.PodState(p.ID())
	errs = append(errs, podns.Unpin(dir), mounts.Detach(filepath.Join(dir, shmDir)), mounts.Detach(filepath.Join(dir, filesDir)))
	s.plugins.Unpinned(p.ID())
	if errors.Join(errs...) == nil {
		// Only now, because a retry of the steps above needs the directory.
		errs = append(errs, overlay.RemoveTree(ctx, dir))
	}
	errs = append(errs, s.cgroups.RemoveInit(ctx, p.CgroupParent()))
	if p.Record().OwnCgroup {
		errs = append(errs, s.cgroups.RemoveParent(ctx, p.CgroupParent()))
	}
	return errors.Join(errs...)
}

// endInit ends the init of a shared PID namespace, and with it all processes of the namespace.
func (s *Service) endInit(ctx context.Context, p *Pod) error {
	init := dying{cgroup: s.cgroups.InitDir(p.CgroupParent()), pid: p.State().InitPid}
	return s.untilDead(ctx, init, func(ctx context.Context) error { return s.keeper.Delete(ctx, p.ID()) })
}

// deleteNetwork detaches the pod from its network. A missing CNI plugin does not stop the removal:
// the other plugins detach the pod, and the attachment record stays until the plugin is back.
func (s *Service) deleteNetwork(ctx context.Context, p *Pod) error {
	if p.hostNetwork() {
		return nil
	}
	err := s.network.Del(ctx, s.networkPod(p))
	if errors.Is(err, network.ErrPluginMissing) {
		klog.FromContext(ctx).Error(err, "Removing pod although a CNI plugin is missing")
		return nil
	}
	return err
}

// erasePod tears the pod down, and removes it and its containers with their records. The caller
// holds p.op.
func (s *Service) erasePod(ctx context.Context, p *Pod) error {
	if err := p.Update(func(st *state.PodState) error { st.Phase = state.PodNotReady; return nil }); err != nil {
		return err
	}
	if err := s.removeAllContainers(ctx, p); err != nil {
		return err
	}
	if err := s.tearDownPod(ctx, p); err != nil {
		return err
	}
	if err := overlay.RemoveTree(ctx, p.Dir()); err != nil {
		return fmt.Errorf("remove record of pod %s: %w", p.ID(), err)
	}
	s.plugins.RemovePod(ctx, p.ID())
	s.pods.Remove(p)
	lookup.ReleaseSELinux(p.Record().SELinux)
	return nil
}

// removeAllContainers removes the containers of a pod that is no longer ready.
func (s *Service) removeAllContainers(ctx context.Context, p *Pod) error {
	return s.eachContainer(ctx, p, "remove container", s.removeContainer)
}

// stopAllContainers tears down all containers of a pod that is no longer ready. It waits for
// creations under way, and returns when the processes of all containers have ended. What follows
// needs no process: released waits until the rest of each tear-down is done, and returns all errors.
func (s *Service) stopAllContainers(ctx context.Context, p *Pod) (released func() error, ended error) {
	containers := s.containersOf(p.ID())
	if len(containers) > 0 {
		operations.Enter(ctx, "end containers")
	}
	var ending, releasing errgroup.Group
	for _, c := range containers {
		dead := make(chan error, 2)
		releasing.Go(func() error {
			ctx, op := s.operations.Begin(ctx, "stop container", s.subject(c))
			err := s.tearDownInStep(ctx, c, dead)
			op.End(err)
			return err
		})
		ending.Go(func() error { return <-dead })
	}
	return releasing.Wait, ending.Wait()
}

// tearDownInStep is tearDownContainer with its lock. It sends to dead, which has room for two
// results, once the container's processes have ended or ending them has failed.
func (s *Service) tearDownInStep(ctx context.Context, c *Container, dead chan<- error) error {
	if hasEnded(c) { // also while its release, which follows the exit, holds the lock
		s.notifyExit(ctx, c) // before the pod's event
		dead <- nil
	}
	err := c.op.Lock(ctx, "stop container "+c.ID())
	if err == nil {
		defer c.op.Unlock()
		err = s.endContainer(ctx, c)
	}
	dead <- err
	if err != nil {
		return err
	}
	return s.releaseContainer(ctx, c)
}

// hasEnded reports whether the container has exited and certainly has no process. Its first process
// may live after a failed start, and where the keeper has lost the container.
func hasEnded(c *Container) bool {
	st := c.State()
	return st.Phase() == state.Exited && ownPIDNamespace(c) && st.Reason != reasonStartError && st.Reason != reasonUnknown
}

// eachContainer calls f for all containers of a pod concurrently, each call as an operation named
// what.
func (s *Service) eachContainer(ctx context.Context, p *Pod, what string, f func(context.Context, *Container) error) error {
	containers := s.containersOf(p.ID())
	if len(containers) > 0 {
		operations.Enter(ctx, "end containers")
	}
	var group errgroup.Group
	for _, c := range containers {
		group.Go(func() error {
			ctx, op := s.operations.Begin(ctx, what, s.subject(c))
			err := f(ctx, c)
			op.End(err)
			return err
		})
	}
	return group.Wait()
}

// tearDownContainer ends the container's processes and removes the OCI runtime's state, the cgroup,
// the mount of the root filesystem and the bundle. The record, the exit and the writable layer
// stay. Like tearDownPod it is idempotent and reads only the record and the disk. The caller holds
// c.op.
func (s *Service) tearDownContainer(ctx context.Context, c *Container) error {
	if err := s.endContainer(ctx, c); err != nil {
		return err
	}
	return s.releaseContainer(ctx, c)
}

// endContainer is the first part of tearDownContainer: it ends the processes.
func (s *Service) endContainer(ctx context.Context, c *Container) error {
	if err := s.killContainer(ctx, c); err != nil {
		return err
	}
	c.awaitPublished()
	operations.Enter(ctx, "delete container")
	s.notifyExit(ctx, c)
	return failpoint.Hit("container-killed")
}

// releaseContainer is the second part of tearDownContainer: it removes the rest.
func (s *Service) releaseContainer(ctx context.Context, c *Container) error {
	remove := func(ctx context.Context) error { return s.keeper.Delete(ctx, c.ID()) }
	if err := s.untilDead(ctx, dying{cgroup: s.containerCgroup(c)}, remove); err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	if err := failpoint.Hit("container-state-removed"); err != nil {
		return err
	}
	// If the OCI runtime has deleted the container, it has removed the cgroup as well.
	if err := s.removeCgroup(ctx, s.containerCgroup(c)); err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	operations.Enter(ctx, "unmount root filesystem")
	bundle := s.paths.Bundle(c.ID())
	if err := s.layers.Unmount(ctx, c.ID()); err != nil {
		return fmt.Errorf("unmount root filesystem of container %s: %w", c.ID(), err)
	}
	if err := mounts.DetachBelow(bundle); err != nil {
		return fmt.Errorf("unmount volumes of container %s: %w", c.ID(), err)
	}
	for _, release := range c.held {
		release()
	}
	c.held = nil
	if err := overlay.RemoveTree(ctx, bundle); err != nil {
		return fmt.Errorf("remove bundle of container %s: %w", c.ID(), err)
	}
	if err := dropCheckpoint(ctx, c.Dir()); err != nil {
		return fmt.Errorf("remove checkpoint of container %s: %w", c.ID(), err)
	}
	return nil
}

// killContainer kills every process of the container and returns when its exit is recorded. Also
// for a container that is created but not started.
func (s *Service) killContainer(ctx context.Context, c *Container) error {
	switch c.Phase() {
	case state.Created, state.Running:
	default:
		return s.killCgroup(ctx, c)
	}
	d := dying{cgroup: s.containerCgroup(c)}
	if ownPIDNamespace(c) {
		d.pid = c.State().Pid
	}
	if err := s.untilDead(ctx, d, func(ctx context.Context) error { return s.killAndWait(ctx, c) }); err != nil {
		return err
	}
	return s.killCgroup(ctx, c)
}

func (s *Service) killAndWait(ctx context.Context, c *Container) error {
	if err := s.kill(ctx, c); err != nil {
		return err
	}
	operations.Enter(ctx, "wait for its exit")
	select {
	case <-c.Exited():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill container %s: wait for its exit: %w", c.ID(), ctx.Err())
	}
}

// killCgroup kills the processes that remain in the container's cgroup, if it has no PID namespace
// of its own.
func (s *Service) killCgroup(ctx context.Context, c *Container) error {
	if ownPIDNamespace(c) {
		return nil // the kernel kills the namespace's processes when its first one exits
	}
	if err := s.cgroups.KillAll(ctx, s.containerCgroup(c)); err != nil {
		return fmt.Errorf("kill processes left by container %s: %w", c.ID(), err)
	}
	return nil
}

func ownPIDNamespace(c *Container) bool {
	ns := c.Config().GetLinux().GetSecurityContext().GetNamespaceOptions()
	return ns.GetPid() == runtimeapi.NamespaceMode_CONTAINER
}

// containerCgroup returns the container's cgroup in the form that package cgroup takes.
func (s *Service) containerCgroup(c *Container) string {
	return s.cgroups.ContainerDir(c.CgroupParent(), c.ID())
}

// eraseContainer tears the container down and removes its writable layer and its record. The caller
// holds c.op.
func (s *Service) eraseContainer(ctx context.Context, c *Container) error {
	if err := s.tearDownContainer(ctx, c); err != nil {
		return err
	}
	operations.Enter(ctx, "remove writable layer")
	if err := s.layers.Remove(ctx, c.ID()); err != nil {
		return fmt.Errorf("remove writable layer of container %s: %w", c.ID(), err)
	}
	if err := failpoint.Hit("container-layer-removed"); err != nil {
		return err
	}
	// The removal of an image leaves the layers that a container uses.
	if s.outlived(c) {
		if err := s.images.Sweep(ctx); err != nil {
			return err
		}
	}
	if err := overlay.RemoveTree(ctx, c.Dir()); err != nil { // with its volumes
		return fmt.Errorf("remove record of container %s: %w", c.ID(), err)
	}
	s.plugins.RemoveContainer(ctx, c.ID())
	s.containers.Remove(c)
	s.releaseLabel(c)
	return nil
}
