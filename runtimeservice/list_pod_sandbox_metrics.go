package runtimeservice

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podNetwork is the container label of a pod's network, which cAdvisor finds
// at the pause container.
const podNetwork = "POD"

// ListPodSandboxMetrics answers with the metrics of every ready pod and of its
// containers that are created or run, the newest pod first.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	run, err := s.newMetricsRun()
	if err != nil {
		return nil, err
	}
	metrics, err := gather(ctx, s.readyPods("", nil), run.pod)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: metrics}, nil
}

// metricsRun is what the readings of one call have in common.
type metricsRun struct {
	s          *Service
	families   []family
	filesystem filesystem
}

func (s *Service) newMetricsRun() (metricsRun, error) {
	fs, err := readFilesystem(s.opts.DataDir)
	return metricsRun{s: s, families: families(), filesystem: fs}, err
}

// pod reads a ready pod. One that is not, or ends meanwhile, is ErrNotFound.
func (m metricsRun) pod(ctx context.Context, p *Pod) (*runtimeapi.PodSandboxMetrics, error) {
	stats, err := m.s.cgroups.Stats(p.CgroupParent)
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	interfaces, err := m.s.podInterfaces(p)
	if err != nil {
		return nil, unreadablePod(p, err)
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID}
	whole := &reading{stats: &stats, limits: p.snapshot().Resources.Msg, created: p.Created, seen: stats.Time}
	out.Metrics = whole.render(m.families, podLabels(p, "", ""))
	wires := &reading{interfaces: interfaces}
	out.Metrics = append(out.Metrics, wires.render(m.families, podLabels(p, p.ID, podNetwork))...)
	out.ContainerMetrics, err = gather(ctx, m.s.containersOf(p.ID), func(ctx context.Context, c *Container) (*runtimeapi.ContainerMetrics, error) {
		return m.container(ctx, p, c)
	})
	return out, err
}

// container reads a container that is created or runs. One that is not, or
// ends meanwhile, is ErrNotFound.
func (m metricsRun) container(ctx context.Context, p *Pod, c *Container) (*runtimeapi.ContainerMetrics, error) {
	if err := m.s.alive(c); err != nil {
		return nil, err
	}
	path := m.s.containerCgroup(c)
	stats, err := m.s.cgroups.Stats(path)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	pids, err := m.s.cgroups.Pids(path)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	layer, err := m.s.layerUsage(ctx, c)
	if err != nil {
		return nil, m.s.unreadable(c, err)
	}
	st := c.snapshot()
	r := &reading{
		stats: &stats, limits: st.Resources.Msg, created: c.Created, started: st.Started, seen: stats.Time, leaf: true,
		disk:      &diskReading{filesystem: m.filesystem, used: layer.usage.Bytes, at: layer.at},
		processes: readProcesses(pids, st.Pid),
	}
	if r.limits == nil {
		r.limits = &runtimeapi.LinuxContainerResources{} // the defaults
	}
	labels := []string{path, c.ID, c.image().GetImage(), c.config().GetMetadata().GetName(), p.meta().GetName(), p.meta().GetNamespace()}
	return &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: r.render(m.families, labels)}, nil
}

// podLabels are the values of baseLabels for the metrics of a whole pod.
func podLabels(p *Pod, name, container string) []string {
	return []string{p.CgroupParent, name, "", container, p.meta().GetName(), p.meta().GetNamespace()}
}
