package runtimeservice

import (
	"context"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/nri"
)

// startPlugins lets NRI plugins join. They are told of the pods that are ready
// and of the containers in them that have not ended.
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
		told, err := s.livingContainer(c)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Plugins are not told of a container", "container", c.ID)
		} else if told.Spec != nil {
			state.Containers = append(state.Containers, told)
		}
	}
	return s.plugins.Start(ctx, state, nri.Runtime{Update: s.updateForPlugin, Evict: s.evict, InjectCDI: s.injectCDI})
}

// livingContainer is what plugins are told of a container that an earlier run
// of the daemon made. Its Spec is nil if there is nothing to tell.
func (s *Service) livingContainer(c *Container) (nri.Container, error) {
	st := c.snapshot()
	pod, err := s.pods.get(c.PodID)
	if err != nil || pod.snapshot().Phase != PodReady || (st.phase() != Created && st.phase() != Running) {
		return nri.Container{}, nil
	}
	ociSpec, err := st.currentSpec(s.bundle(c.ID))
	if err != nil {
		return nri.Container{}, err
	}
	told := pluginContainer(c, ociSpec)
	told.Started, told.Pid = st.Started, st.Pid
	return told, nil
}

// pluginPod is what plugins are told of a pod in the given state.
func (s *Service) pluginPod(p *Pod, st PodState) nri.Pod {
	return nri.Pod{
		ID: p.ID, Config: p.config(), Handler: p.Handler, IPs: st.IPs, CgroupParent: p.CgroupParent,
		Overhead: st.Overhead.Msg, Resources: st.Resources.Msg, Namespaces: s.namespaces(p),
	}
}

// pluginContainer is what plugins are told of a container that is being made.
func pluginContainer(c *Container, ociSpec *specs.Spec) nri.Container {
	image := nri.Image{Name: c.image().GetImage(), ConfigDigest: c.ImageID}
	if _, digest, ok := strings.Cut(c.ImageRef, "@"); ok {
		image.Digest = digest
	}
	return nri.Container{ID: c.ID, PodID: c.PodID, Config: c.config(), Spec: ociSpec, Image: image, Created: c.Created}
}

// adjustByPlugins lets plugins change the container's specification. The
// container's resources are those that were asked for with what they changed.
func (s *Service) adjustByPlugins(ctx context.Context, c *Container, ociSpec *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	asked := c.config().GetLinux().GetResources()
	changed, err := s.plugins.CreateContainer(ctx, pluginContainer(c, ociSpec))
	if err != nil || changed == nil {
		return asked, err
	}
	return mergeResources(asked, changed), nil
}

// tellExit tells plugins that the container has ended.
func (s *Service) tellExit(ctx context.Context, c *Container) {
	st := c.snapshot()
	s.plugins.StopContainer(ctx, c.ID, nri.Exit{At: st.Finished, Code: st.ExitCode, Reason: st.Reason, Message: st.Message})
}

// updateForPlugin changes the limits of a container because a plugin wants it.
func (s *Service) updateForPlugin(ctx context.Context, u nri.Update) error {
	c, err := s.containers.get(u.ID)
	if err != nil {
		return err
	}
	return s.limitContainer(ctx, c, u)
}

// evict kills a container because a plugin wants it.
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
