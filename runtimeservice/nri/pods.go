package nri

import (
	"context"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// RunPod tells of a pod that is about to be ready. An error of a plugin is
// returned; those that accepted the pod before are told of its end.
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

// UpdatePod tells of resources that are about to be set for the whole pod. An
// error of a plugin is returned.
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

// PostUpdatePod tells of the resources that a pod now has.
func (p *Plugins) PostUpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) {
	p.report(ctx, "note the update of pod "+id, id, func() error {
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

// StopPod tells, once, that the pod's containers have ended and the pod is
// about to be stopped.
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

// Unpinned takes in that the pod's namespaces are not to be found any more where they were, for
// what plugins are told next of the pod and its containers. It tells them nothing.
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

// dropPaths leaves namespaces without those of their paths that begin with prefix.
func dropPaths(namespaces []*api.LinuxNamespace, prefix string) {
	for _, ns := range namespaces {
		if strings.HasPrefix(ns.GetPath(), prefix) {
			ns.Path = ""
		}
	}
}

// RemovePod tells, once, that the stopped pod is removed.
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

// stopContainersOf tells of the end of those of the pod's containers of which
// it is not told yet. The caller has the turn.
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

// endPod tells of the end of a pod that not every plugin accepted. The caller
// has the turn.
func (p *Plugins) endPod(ctx context.Context, pod *api.PodSandbox) {
	log := klog.FromContext(ctx).WithValues("id", pod.GetId())
	if err := p.adapter.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod}); err != nil {
		log.Error(err, "Plugins may have missed the stop of a pod that one of them refused")
	}
	if err := p.adapter.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod}); err != nil {
		log.Error(err, "Plugins may have missed the removal of a pod that one of them refused")
	}
}
