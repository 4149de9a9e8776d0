package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/state"
)

// recoverStateless handles a container in Creating that the keeper knows. If its process was
// started, only the state file is lost: the container is ended and stays, with an unknown exit
// code. Otherwise the container is half made and is removed. The caller holds c.op.
func (s *Service) recoverStateless(ctx context.Context, c *Container) error {
	if started, err := s.hasStarted(ctx, c); err != nil || !started {
		return s.eraseContainer(ctx, c)
	}
	return s.endDamaged(ctx, c, "its state file is lost")
}

// suspects describes what a running or created container seems to lack; "" for nothing. It only
// looks at files.
func (s *Service) suspects(c *Container) string {
	if c.unstarted() {
		return ""
	}
	h, err := s.handler(c.Record().Handler)
	switch {
	case !s.layers.Intact(c.ID()):
		return "its writable layer is lost"
	case s.leftCgroup(c):
		return "its cgroup is lost"
	case err == nil && h.Handler().Root != "" && !exists(filepath.Join(h.Handler().Root, c.ID())):
		return "the OCI runtime's state is lost"
	case !exists(filepath.Join(s.paths.Bundle(c.ID()), specFile)):
		return "its bundle is lost"
	}
	return ""
}

// leftCgroup reports whether the container's cgroup does not exist and its process runs in another.
func (s *Service) leftCgroup(c *Container) bool {
	if dir := s.cgroups.MemoryDir(s.containerCgroup(c)); dir == "" || exists(dir) {
		return false
	}
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.State().Pid), "cgroup"))
	return err == nil && !strings.Contains(string(groups), c.ID())
}

// recoverDamaged repairs a container that lacks something, or ends it. The caller holds c.op.
func (s *Service) recoverDamaged(ctx context.Context, c *Container) error {
	if c.Phase() == state.Exited {
		return s.tearDownContainer(ctx, c)
	}
	if !exists(filepath.Join(s.paths.Bundle(c.ID()), specFile)) {
		if err := s.repairBundle(ctx, c); err != nil {
			return errors.Join(err, s.endDamaged(ctx, c, "its bundle is lost"))
		}
	}
	started, err := s.hasStarted(ctx, c)
	switch lost := s.suspects(c); {
	case errdefs.IsNotFound(err):
		return s.endDamaged(ctx, c, "the OCI runtime's state is lost")
	case lost != "" && !strings.HasPrefix(lost, "the OCI runtime"): // not every runtime has a directory of that name
		return s.endDamaged(ctx, c, lost)
	case err != nil:
		return err
	case started && c.Phase() == state.Created:
		return s.recoverStart(ctx, c, c.State().Pid)
	}
	return nil
}

// repairBundle writes the bundle's specification again, from the copy beside the record.
func (s *Service) repairBundle(ctx context.Context, c *Container) error {
	pod, err := s.pods.Get(c.PodID())
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.Dir(), specFile))
	if err != nil {
		return fmt.Errorf("repair bundle of container %s: %w", c.ID(), err)
	}
	if err := s.makeBundle(pod, c); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("repair bundle of container %s: %w", c.ID(), err)
	}
	if err := os.WriteFile(filepath.Join(s.paths.Bundle(c.ID()), specFile), text, 0o600); err != nil {
		return fmt.Errorf("repair bundle of container %s: %w", c.ID(), err)
	}
	s.reportRepair(ctx, s.subject(c), "its bundle was lost, and is written again")
	return nil
}

// endDamaged ends a container that cannot continue. The caller holds c.op.
func (s *Service) endDamaged(ctx context.Context, c *Container, why string) error {
	klog.FromContext(ctx).Info("Ending a damaged container", "container", c.ID(), "reason", why)
	s.operations.Note("end damaged container", s.subject(c), why)
	if c.Phase() == state.Creating {
		// The container was ready, since it was started.
		if err := c.Update(func(st *state.ContainerState) error { st.Ready, st.BootID = true, s.bootID; return nil }); err != nil {
			return err
		}
	}
	if err := s.recordExit(c, lostExit(why+"; the container was ended at the daemon's start")); err != nil {
		return err
	}
	// The tear-down does not kill a container whose exit is recorded.
	if err := s.keeper.Kill(ctx, c.ID(), syscall.SIGKILL, false); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill container %s: %w", c.ID(), err)
	}
	return errors.Join(c.recordUndelivered(), s.tearDownContainer(ctx, c))
}

// podLacks describes what a ready pod lacks and repairPod can restore; "" for nothing. podStands
// must be true of the pod.
func (s *Service) podLacks(p *Pod) string {
	dir := filepath.Join(s.paths.PodState(p.ID()), filesDir)
	if !isMountPoint(dir) {
		return "directory of files under /etc"
	}
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		if !exists(filepath.Join(dir, name)) {
			return name
		}
	}
	if dir := s.cgroups.MemoryDir(p.CgroupParent()); p.Record().OwnCgroup && dir != "" && !exists(dir) {
		return "cgroup"
	}
	if !p.hostNetwork() {
		return s.network.Lacks(p.ID())
	}
	return ""
}

// repairPod restores what the pod lacks. It tears down a pod whose network cannot be repaired. The
// caller holds p.op.
func (s *Service) repairPod(ctx context.Context, p *Pod) error {
	if what := s.podLacks(p); what != "" {
		s.reportRepair(ctx, p.Subject(), "lost and made again: "+what)
	}
	operations.Enter(ctx, "make cgroup")
	if _, err := s.cgroups.EnsureParent(ctx, p.CgroupParent()); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	operations.Enter(ctx, "repair network")
	if !p.hostNetwork() {
		if _, err := s.network.Repair(ctx, s.networkPod(p)); err != nil {
			return errors.Join(fmt.Errorf("repair network: %w", err), s.stopDamagedPod(ctx, p))
		}
	}
	operations.Enter(ctx, "write pod files")
	return s.writeMissingFiles(p, p.State().IPs)
}

// recoverPodState writes the lost state of a pod of which podStands is true. The caller holds p.op.
func (s *Service) recoverPodState(ctx context.Context, p *Pod) error {
	s.reportRepair(ctx, p.Subject(), "its state file was lost, and is written again")
	ready := state.PodState{Phase: state.PodReady, BootID: s.bootID}
	if !p.hostNetwork() {
		operations.Enter(ctx, "repair network")
		result, err := s.network.Repair(ctx, s.networkPod(p))
		if err != nil {
			return errors.Join(fmt.Errorf("repair network: %w", err), s.stopDamagedPod(ctx, p))
		}
		for _, ip := range result.IPs {
			ready.IPs = append(ready.IPs, ip.String())
		}
	}
	linux := p.Config().GetLinux()
	ready.Overhead.Msg, ready.Resources.Msg = linux.GetOverhead(), linux.GetResources()
	return p.Update(func(st *state.PodState) error { *st = ready; return nil })
}

// stopDamagedPod tears down a pod that cannot be repaired. The caller holds p.op.
func (s *Service) stopDamagedPod(ctx context.Context, p *Pod) error {
	if err := p.Update(func(st *state.PodState) error { st.Phase, st.InitPid = state.PodNotReady, 0; return nil }); err != nil {
		return err
	}
	s.emit(p.ID(), p, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return s.tearDownPod(ctx, p)
}

func (s *Service) reportRepair(ctx context.Context, on operations.Subject, what string) {
	klog.FromContext(ctx).Info("Repaired at the start", "what", what, "pod", on.Pod, "container", on.Container)
	s.operations.Note("repair", on, what)
}
