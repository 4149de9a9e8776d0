package runtimeservice

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/stats"
)

// podNetwork is the container label of a pod's network. cAdvisor finds these counters at the pause
// container.
const podNetwork = "POD"

// ListPodSandboxMetrics returns the metrics of every ready pod and of its created and running
// containers, newest pod first.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	pods := s.readyPods("", nil)
	run, err := s.newMetricsRun()
	if err != nil {
		return nil, err
	}
	metrics, err := gather(ctx, pods, run.pod)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: metrics}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics with messages of bounded size. A message is sent
// as soon as its pods are read.
func (s *Service) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	pods := s.readyPods("", nil)
	run, err := s.newMetricsRun()
	if err != nil {
		return err
	}
	return gatherAndSend(stream.Context(), pods, run.pod, func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}

// metricsRun is what the readings of one call share.
type metricsRun struct {
	s          *Service
	metrics    stats.Metrics
	filesystem stats.Filesystem
	containers map[string][]*Container // by pod
}

func (s *Service) newMetricsRun() (metricsRun, error) {
	fs, err := stats.ReadFilesystem(s.opts.DataDir)
	return metricsRun{s: s, metrics: stats.NewMetrics(), filesystem: fs, containers: s.containersByPod()}, err
}

// pod reads the metrics of a ready pod. It returns ErrNotFound for a pod that stops meanwhile.
func (m metricsRun) pod(ctx context.Context, p *Pod) (*runtimeapi.PodSandboxMetrics, error) {
	counters, err := m.s.cgroups.Stats(p.CgroupParent())
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	interfaces, err := m.s.podInterfaces(ctx, p)
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID()}
	whole := &stats.Reading{Stats: &counters, Limits: p.State().Resources.Msg, Created: p.Record().Created, Seen: counters.Time}
	out.Metrics = m.metrics.Samples(whole, podLabels(p, "", ""))
	wires := &stats.Reading{Interfaces: interfaces}
	out.Metrics = append(out.Metrics, m.metrics.Samples(wires, podLabels(p, p.ID(), podNetwork))...)
	out.ContainerMetrics, err = gather(ctx, m.containers[p.ID()], func(ctx context.Context, c *Container) (*runtimeapi.ContainerMetrics, error) {
		return m.container(ctx, p, c)
	})
	return out, err
}

// container reads the metrics of a created or running container. It returns ErrNotFound for one in
// another phase, also if it exits meanwhile.
func (m metricsRun) container(ctx context.Context, p *Pod, c *Container) (*runtimeapi.ContainerMetrics, error) {
	if err := m.s.alive(c); err != nil {
		return nil, err
	}
	path := m.s.containerCgroup(c)
	counters, err := m.s.cgroups.Stats(path)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	pids, err := m.s.cgroups.Members(path)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	layer, err := m.s.layerUsage(ctx, c)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	st := c.State()
	r := &stats.Reading{
		Stats: &counters, Limits: st.Resources.Msg, Created: c.Record().Created, Started: st.Started, Seen: counters.Time, Leaf: true,
		Disk:      &stats.Disk{Filesystem: m.filesystem, Layer: layer},
		Processes: stats.ReadProcesses(pids, st.Pid),
	}
	if r.Limits == nil {
		r.Limits = &runtimeapi.LinuxContainerResources{} // the defaults
	}
	labels := stats.Labels{
		Cgroup: path, Name: c.ID(), Image: c.image().GetImage(), Container: c.Config().GetMetadata().GetName(),
		Pod: p.Metadata().GetName(), Namespace: p.Metadata().GetNamespace(),
	}
	return &runtimeapi.ContainerMetrics{ContainerId: c.ID(), Metrics: m.metrics.Samples(r, labels)}, nil
}

// podLabels returns the labels of metrics of a whole pod.
func podLabels(p *Pod, name, container string) stats.Labels {
	return stats.Labels{
		Cgroup: p.CgroupParent(), Name: name, Container: container, Pod: p.Metadata().GetName(), Namespace: p.Metadata().GetNamespace(),
	}
}
