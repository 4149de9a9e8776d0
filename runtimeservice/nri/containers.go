package nri

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// CreateContainer sends the event before a container is created and adjusts c.Spec as plugins
// request. It also makes their changes to other containers before it returns. It returns the
// resources that plugins set, in CRI's form, and nil if they set none. After an error, plugins that
// accepted the container either have got its stop and removal events, or get them from
// RemoveContainer.
func (p *Plugins) CreateContainer(ctx context.Context, c Container) (*runtimeapi.LinuxContainerResources, error) {
	var answer *api.CreateContainerResponse
	gathered, evictions := withEvictions(ctx)
	err := p.tell(ctx, "create container "+c.ID, func() error {
		pod := p.pod(c.PodID)
		if pod == nil {
			return errUnknownPod
		}
		msg := containerMessage(c)
		var err error
		if answer, err = p.adapter.CreateContainer(gathered, &api.CreateContainerRequest{Pod: pod, Container: msg}); err == nil {
			err = adjust(c.Spec, answer.GetAdjust(), p.runtime.InjectCDI)
		}
		if err != nil {
			p.endContainer(ctx, pod, msg)
			return err
		}
		// The container as adjusted, without the seccomp policy: it is large and needed only for
		// the adjustment.
		msg = containerMessage(c)
		msg.Linux.SeccompPolicy = nil
		p.mu.Lock()
		defer p.mu.Unlock()
		p.containers[c.ID] = msg
		return nil
	})
	if err != nil || answer == nil {
		return nil, err
	}
	if err := p.update(ctx, answer.GetUpdate()); err != nil {
		return nil, fmt.Errorf("update other containers: %w", err)
	}
	p.evict(ctx, evictions)
	return toCRI(answer.GetAdjust().GetLinux().GetResources()), nil
}

// endContainer sends the stop and removal events of a container that not every plugin accepted. The
// caller holds the turn.
func (p *Plugins) endContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) {
	log := klog.FromContext(ctx).WithValues("id", c.GetId())
	c = proto.Clone(c).(*api.Container)
	c.State = api.ContainerState_CONTAINER_STOPPED
	answer, err := p.adapter.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c})
	if err != nil {
		log.Error(err, "Plugins may have missed the stop of a container that one of them refused")
	}
	p.updateLater(ctx, answer.GetUpdate())
	if err := p.adapter.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c}); err != nil {
		log.Error(err, "Plugins may have missed the removal of a container that one of them refused")
	}
}

// PostCreateContainer sends the event after the container is created. Errors are logged.
func (p *Plugins) PostCreateContainer(ctx context.Context, id string) {
	p.report(ctx, "post-create container "+id, id, func() error {
		c, pod := p.container(id)
		if c.GetState() != api.ContainerState_CONTAINER_CREATED {
			return nil
		}
		return p.adapter.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: c})
	})
}

// StartContainer sends the event before the container starts. It returns the error of a plugin.
func (p *Plugins) StartContainer(ctx context.Context, id string) error {
	return p.tell(ctx, "start container "+id, func() error {
		c, pod := p.container(id)
		if c.GetState() != api.ContainerState_CONTAINER_CREATED {
			return nil
		}
		if err := p.adapter.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: c}); err != nil {
			return err
		}
		p.change(id, func(c *api.Container) { c.State = api.ContainerState_CONTAINER_RUNNING })
		return nil
	})
}

// PostStartContainer sends the event after the container has started, unless plugins already know
// that it has exited. Errors are logged.
func (p *Plugins) PostStartContainer(ctx context.Context, id string, pid int, started time.Time) {
	p.report(ctx, "post-start container "+id, id, func() error {
		c, pod := p.container(id)
		if c.GetState() != api.ContainerState_CONTAINER_RUNNING {
			return nil
		}
		c = p.change(id, func(c *api.Container) { c.Pid, c.StartedAt = uint32(pid), started.UnixNano() })
		return p.adapter.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: c})
	})
}

// UpdateContainer sends the event before the container's limits change and returns the limits as
// changed by plugins. It also makes their changes to other containers before it returns. It returns
// the error of a plugin.
func (p *Plugins) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) (Update, error) {
	var answer *api.UpdateContainerResponse
	gathered, evictions := withEvictions(ctx)
	err := p.tell(ctx, "update container "+id, func() error {
		c, pod := p.container(id)
		if c == nil {
			return nil
		}
		var err error
		answer, err = p.adapter.UpdateContainer(gathered, &api.UpdateContainerRequest{Pod: pod, Container: c, LinuxResources: fromCRI(change)})
		return err
	})
	own := Update{ID: id, Resources: change}
	if err != nil || answer == nil {
		return own, err
	}
	var others []*api.ContainerUpdate
	for _, u := range answer.GetUpdate() {
		switch {
		case u.GetContainerId() == id:
			if own, err = updateOf(u); err != nil {
				return own, err
			}
			own.Resources.OomScoreAdj = change.GetOomScoreAdj() // not part of the event
		case u != nil: // nil if no plugin changed the request
			others = append(others, u)
		}
	}
	if err := p.update(ctx, others); err != nil {
		return own, fmt.Errorf("update other containers: %w", err)
	}
	p.evict(ctx, evictions)
	return own, nil
}

// PostUpdateContainer sends the event after the container's limits have changed. Errors are logged.
func (p *Plugins) PostUpdateContainer(ctx context.Context, id string) {
	p.report(ctx, "post-update container "+id, id, func() error {
		c, pod := p.container(id)
		if c == nil {
			return nil
		}
		return p.adapter.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: c})
	})
}

// Limited stores a container's current limits for the next events. It sends no event.
func (p *Plugins) Limited(id string, limits *specs.LinuxResources) {
	if p == nil {
		return
	}
	p.change(id, func(c *api.Container) {
		now, old := api.FromOCILinuxResources(limits, nil), c.Linux.Resources
		if old != nil {
			now.Devices = old.Devices
		}
		if now.Pids == nil {
			now.Pids = old.GetPids()
		}
		c.Linux.Resources = now
	})
}

// StopContainer sends the event, once, that the container has exited. It does not wait for plugins'
// changes to other containers. Errors are logged.
func (p *Plugins) StopContainer(ctx context.Context, id string, exit Exit) {
	p.report(ctx, "stop container "+id, id, func() error { return p.stopContainer(ctx, id, exit) })
}

// stopContainer is StopContainer for a caller that holds the turn.
func (p *Plugins) stopContainer(ctx context.Context, id string, exit Exit) error {
	c, pod := p.container(id)
	if c == nil || c.State == api.ContainerState_CONTAINER_STOPPED {
		return nil
	}
	c = p.change(id, func(c *api.Container) {
		c.State, c.Pid = api.ContainerState_CONTAINER_STOPPED, 0
		// The container may have joined the PID namespace of a process that has exited; the PID may
		// have been reused.
		dropPaths(c.GetLinux().GetNamespaces(), "/proc/")
		c.ExitCode, c.StatusReason, c.StatusMessage = int32(exit.Code), exit.Reason, exit.Message
		if !exit.At.IsZero() {
			c.FinishedAt = exit.At.UnixNano()
		}
	})
	answer, err := p.adapter.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: c})
	p.updateLater(ctx, answer.GetUpdate())
	return err
}

// RemoveContainer sends the event, once, that the container is removed. Errors are logged.
func (p *Plugins) RemoveContainer(ctx context.Context, id string) {
	p.report(ctx, "remove container "+id, id, func() error {
		if err := p.stopContainer(ctx, id, Exit{}); err != nil {
			klog.FromContext(ctx).Error(err, "Plugins may have missed the stop of a container", "id", id)
		}
		c, pod := p.container(id)
		if c == nil {
			return nil
		}
		p.mu.Lock()
		delete(p.containers, id)
		p.mu.Unlock()
		return p.adapter.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c})
	})
}
