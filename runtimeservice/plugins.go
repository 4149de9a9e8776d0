package runtimeservice

import (
	"context"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/nri"
)

// startPlugins lets NRI plugins connect. It sends them the ready pods, with the containers in these
// that have not exited.
func (s *Service) startPlugins(ctx context.Context) error {
	if s.plugins == nil {
		return nil
	}
	var state nri.State
	for _, p := range s.pods.all() {
		if st := p.snapshot(); st.Phase == PodReady {
			state.Pods = append(state.Pods, s.pluginPod(p, st))
		}
	}
	for _, c := range s.containers.all() {
		out, err := s.livingContainer(c)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Container is not shown to NRI plugins", "container", c.ID)
		} else if out.Spec != nil {
			state.Containers = append(state.Containers, out)
		}
	}
	return s.plugins.Start(ctx, state, nri.Runtime{Update: s.updateForPlugin, Evict: s.evict, InjectCDI: s.injectCDI})
}

// livingContainer describes a container of an earlier run of the daemon for plugins. Spec is nil if
// plugins do not need the container, because it has exited or its pod is not ready.
func (s *Service) livingContainer(c *Container) (nri.Container, error) {
	st := c.snapshot()
	pod, err := s.pods.get(c.PodID)
	if err != nil || pod.snapshot().Phase != PodReady || (st.phase() != Created && st.phase() != Running) {
		return nri.Container{}, nil //nolint:nilerr // without its pod, a container is not living
	}
	ociSpec, err := st.currentSpec(s.bundle(c.ID))
	if err != nil {
		return nri.Container{}, err
	}
	out := pluginContainer(c, ociSpec)
	out.Started, out.Pid = st.Started, st.Pid
	return out, nil
}

// pluginPod describes a pod in the given state for plugins.
func (s *Service) pluginPod(p *Pod, st PodState) nri.Pod {
	return nri.Pod{
		ID: p.ID, Config: p.config(), Handler: p.Handler, IPs: st.IPs, CgroupParent: p.CgroupParent,
		Overhead: st.Overhead.Msg, Resources: st.Resources.Msg, Namespaces: s.namespaces(p),
	}
}

// pluginContainer describes a container under creation for plugins.
func pluginContainer(c *Container, ociSpec *specs.Spec) nri.Container {
	image := nri.Image{Name: c.image().GetImage(), ConfigDigest: c.ImageID}
	if _, digest, ok := strings.Cut(c.ImageRef, "@"); ok {
		image.Digest = digest
	}
	return nri.Container{ID: c.ID, PodID: c.PodID, Config: c.config(), Spec: ociSpec, Image: image, Created: c.Created}
}

// adjustByPlugins lets plugins change the container's specification. It returns the requested
// resources, merged with the plugins' changes.
func (s *Service) adjustByPlugins(ctx context.Context, c *Container, ociSpec *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	asked := c.config().GetLinux().GetResources()
	changed, err := s.plugins.CreateContainer(ctx, pluginContainer(c, ociSpec))
	if err != nil || changed == nil {
		return asked, err
	}
	return mergeResources(asked, changed), nil
}

// notifyExit sends the container's exit to plugins.
func (s *Service) notifyExit(ctx context.Context, c *Container) {
	st := c.snapshot()
	s.plugins.StopContainer(ctx, c.ID, nri.Exit{At: st.Finished, Code: st.ExitCode, Reason: st.Reason, Message: st.Message})
}

// updateForPlugin changes a container's limits at a plugin's request.
func (s *Service) updateForPlugin(ctx context.Context, u nri.Update) error {
	c, err := s.containers.get(u.ID)
	if err != nil {
		return err
	}
	return s.limitContainer(ctx, c, u)
}

// evict kills a container at a plugin's request. It returns before the container has exited.
func (s *Service) evict(ctx context.Context, id, reason string) {
	log := klog.FromContext(ctx).WithValues("container", id, "reason", reason)
	c, err := s.containers.get(id)
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
