package runtimeservice

import (
	"context"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/state"
)

// startPlugins lets NRI plugins connect. It sends them the ready pods, with the containers in these
// that have not exited.
func (s *Service) startPlugins(ctx context.Context) error {
	if s.plugins == nil {
		return nil
	}
	var present nri.State
	for _, p := range s.pods.All() {
		if st := p.State(); st.Phase == state.PodReady {
			present.Pods = append(present.Pods, s.pluginPod(p, st))
		}
	}
	present.Containers = s.livingContainers(ctx)
	return s.plugins.Start(ctx, present, nri.Runtime{Update: s.updateForPlugin, Evict: s.evict, InjectCDI: s.injectCDI})
}

// livingContainers describes the containers of earlier runs of the daemon that plugins need.
func (s *Service) livingContainers(ctx context.Context) []nri.Container {
	all := s.containers.All()
	found := make([]nri.Container, len(all))
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for i, c := range all {
		group.Go(func() error {
			var err error
			if found[i], err = s.livingContainer(c); err != nil {
				klog.FromContext(ctx).Error(err, "Container is not shown to NRI plugins", "container", c.ID())
			}
			return nil
		})
	}
	_ = group.Wait()
	return slices.DeleteFunc(found, func(c nri.Container) bool { return c.Spec == nil })
}

// livingContainer describes a container of an earlier run of the daemon for plugins. Spec is nil if
// plugins do not need the container, because it has exited or its pod is not ready.
func (s *Service) livingContainer(c *Container) (nri.Container, error) {
	st := c.State()
	pod, err := s.pods.Get(c.PodID())
	if err != nil || pod.State().Phase != state.PodReady || (st.Phase() != state.Created && st.Phase() != state.Running) {
		return nri.Container{}, nil //nolint:nilerr // without its pod, a container is not living
	}
	ociSpec, err := currentSpecWithoutSeccomp(st, s.paths.Bundle(c.ID()))
	if err != nil {
		return nri.Container{}, err
	}
	out := pluginContainer(c, ociSpec)
	out.Started, out.Pid = st.Started, st.Pid
	return out, nil
}

// pluginPod describes a pod in the given state for plugins.
func (s *Service) pluginPod(p *Pod, st state.PodState) nri.Pod {
	return nri.Pod{
		ID: p.ID(), Config: p.Config(), Handler: p.Record().Handler, IPs: st.IPs, CgroupParent: p.CgroupParent(),
		Overhead: st.Overhead.Msg, Resources: st.Resources.Msg, Namespaces: s.namespaces(p),
	}
}

// pluginContainer describes a container under creation for plugins.
func pluginContainer(c *Container, ociSpec *specs.Spec) nri.Container {
	image := nri.Image{Name: c.image().GetImage(), ConfigDigest: c.Record().ImageID}
	if _, digest, ok := strings.Cut(c.Record().ImageRef, "@"); ok {
		image.Digest = digest
	}
	return nri.Container{ID: c.ID(), PodID: c.PodID(), Config: c.Config(), Spec: ociSpec, Image: image, Created: c.Record().Created}
}

// adjustByPlugins lets plugins change the container's specification. It returns the requested
// resources, merged with the plugins' changes.
func (s *Service) adjustByPlugins(ctx context.Context, c *Container, ociSpec *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	asked := c.Config().GetLinux().GetResources()
	changed, err := s.plugins.CreateContainer(ctx, pluginContainer(c, ociSpec))
	if err != nil || changed == nil {
		return asked, err
	}
	return mergeResources(asked, changed), nil
}

// notifyExit sends the container's exit to plugins.
func (s *Service) notifyExit(ctx context.Context, c *Container) {
	st := c.State()
	s.plugins.StopContainer(ctx, c.ID(), nri.Exit{At: st.Finished, Code: st.ExitCode, Reason: st.Reason, Message: st.Message})
}

// updateForPlugin changes a container's limits at a plugin's request.
func (s *Service) updateForPlugin(ctx context.Context, u nri.Update) error {
	c, err := s.containers.Get(u.ID)
	if err != nil {
		return err
	}
	return s.limitContainer(ctx, c, u)
}

// evict kills a container at a plugin's request. It returns before the container has exited.
func (s *Service) evict(ctx context.Context, id, reason string) {
	log := klog.FromContext(ctx).WithValues("container", id, "reason", reason)
	c, err := s.containers.Get(id)
	if err != nil {
		log.Error(err, "Container is not evicted")
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.TeardownTimeout)
	s.background.Go(func() {
		defer cancel()
		if err := s.stopContainer(ctx, c, 0); err != nil {
			log.Error(err, "Container is not evicted")
		}
	})
}
