package nri

import (
	"context"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// RunPod sends the event before a pod becomes ready. It returns the error of a plugin; plugins that
// accepted the pod before get its stop and removal events.
func (p *Plugins) RunPod(ctx context.Context, pod Pod) error {
	return p.tell(ctx, "run pod "+pod.ID, func() error {
		msg := podMessage(pod)
		if err := p.adapter.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: msg}); err != nil {
			p.endPod(ctx, msg)
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pods[pod.ID] = msg
		return nil
	})
}

// UpdatePod sends the event before resources are set for the whole pod. It returns the error of a
// plugin.
func (p *Plugins) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	return p.tell(ctx, "update pod "+id, func() error {
		pod := p.pod(id)
		if pod == nil {
			return nil
		}
		_, err := p.adapter.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
			Pod: pod, OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources),
		})
		return err
	})
}

// PostUpdatePod sends the event after a pod's resources have been set. Errors are logged.
func (p *Plugins) PostUpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) {
	p.report(ctx, "post-update pod "+id, id, func() error {
		pod := p.pod(id)
		if pod == nil {
			return nil
		}
		pod = proto.Clone(pod).(*api.PodSandbox)
		pod.Linux.PodOverhead, pod.Linux.PodResources = fromCRI(overhead), fromCRI(resources)
		p.mu.Lock()
		p.pods[id] = pod
		p.mu.Unlock()
		return p.adapter.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
	})
}

// StopPod sends the event, once, that the pod's containers have exited and the pod is about to be
// stopped. Errors are logged.
func (p *Plugins) StopPod(ctx context.Context, id string) {
	p.report(ctx, "stop pod "+id, id, func() error {
		p.mu.Lock()
		pod, known := p.pods[id], p.pods[id] != nil && !p.stopped[id]
		p.mu.Unlock()
		if !known {
			return nil
		}
		p.stopContainersOf(ctx, id)
		p.mu.Lock()
		p.stopped[id] = true
		p.mu.Unlock()
		return p.adapter.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
	})
}

// Unpinned removes the paths of the pod's namespaces from the next events of the pod and its
// containers, since the pins are gone. It sends no event.
func (p *Plugins) Unpinned(id string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pod := p.pods[id]; pod != nil {
		pod = proto.Clone(pod).(*api.PodSandbox)
		dropPaths(pod.GetLinux().GetNamespaces(), "")
		p.pods[id] = pod
	}
	for container, c := range p.containers {
		if c.GetPodSandboxId() == id {
			c = proto.Clone(c).(*api.Container)
			dropPaths(c.GetLinux().GetNamespaces(), "")
			p.containers[container] = c
		}
	}
}

// dropPaths clears the paths of namespaces that begin with prefix.
func dropPaths(namespaces []*api.LinuxNamespace, prefix string) {
	for _, ns := range namespaces {
		if strings.HasPrefix(ns.GetPath(), prefix) {
			ns.Path = ""
		}
	}
}

// RemovePod sends the event, once, that the stopped pod is removed. Errors are logged.
func (p *Plugins) RemovePod(ctx context.Context, id string) {
	p.report(ctx, "remove pod "+id, id, func() error {
		pod := p.pod(id)
		if pod == nil {
			return nil
		}
		p.mu.Lock()
		delete(p.pods, id)
		delete(p.stopped, id)
		p.mu.Unlock()
		return p.adapter.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
	})
}

// stopContainersOf sends the stop event of the pod's containers that have not got one. The caller
// holds the turn.
func (p *Plugins) stopContainersOf(ctx context.Context, podID string) {
	for _, c := range p.livingContainers() {
		if c.GetPodSandboxId() != podID {
			continue
		}
		if err := p.stopContainer(ctx, c.GetId(), Exit{}); err != nil {
			klog.FromContext(ctx).Error(err, "Plugins may have missed an event", "id", c.GetId())
		}
	}
}

// endPod sends the stop and removal events of a pod that not every plugin accepted. The caller
// holds the turn.
func (p *Plugins) endPod(ctx context.Context, pod *api.PodSandbox) {
	log := klog.FromContext(ctx).WithValues("id", pod.GetId())
	if err := p.adapter.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod}); err != nil {
		log.Error(err, "Plugins may have missed the stop of a pod that one of them refused")
	}
	if err := p.adapter.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod}); err != nil {
		log.Error(err, "Plugins may have missed the removal of a pod that one of them refused")
	}
}
