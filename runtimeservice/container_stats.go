package runtimeservice

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/state"
	"github.com/micarun/mica/runtimeservice/stats"
)

// ContainerStats returns the resource usage of a container. After its exit that is only the
// writable layer. Errors: ErrNotFound, ErrInvalidArgument.
func (s *Service) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("container stats: %w", err)
	}
	usage, err := s.containerStats(ctx, c)
	if errdefs.IsNotFound(err) {
		usage, err = s.endedStats(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: usage}, nil
}

// containerStats reads the usage of a created or running container. It returns ErrNotFound for a
// container in another phase, also if it exits meanwhile.
func (s *Service) containerStats(ctx context.Context, c *Container) (*runtimeapi.ContainerStats, error) {
	if err := s.alive(c); err != nil {
		return nil, err
	}
	st, err := s.cgroups.Usage(s.containerCgroup(c))
	if err != nil {
		return nil, s.unreadable(c, err)
	}
	usage, err := s.endedStats(ctx, c)
	if err != nil {
		return nil, s.unreadable(c, err)
	}
	start := cmp.Or(c.State().Started, c.Record().Created)
	usage.Cpu = stats.CPU(st, c.usage.Rate(st.Time, st.CPU.Usage, start))
	usage.Memory, usage.Swap, usage.Io = stats.Memory(st), stats.Swap(st), stats.IO(st)
	return usage, nil
}

// endedStats returns the usage of a container without processes.
func (s *Service) endedStats(ctx context.Context, c *Container) (*runtimeapi.ContainerStats, error) {
	layer, err := s.layerUsage(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read usage of container %s: %w", c.ID(), err)
	}
	cfg := c.Config()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          c.ID(),
			Metadata:    cfg.GetMetadata(),
			Labels:      maps.Clone(cfg.GetLabels()),
			Annotations: maps.Clone(cfg.GetAnnotations()),
		},
		WritableLayer: layer.Filesystem(s.opts.DataDir),
	}, nil
}

// layerUsage returns the size of the container's writable layer, measured some seconds ago.
func (s *Service) layerUsage(ctx context.Context, c *Container) (stats.Layer, error) {
	return c.usage.Layer(ctx, func(ctx context.Context) (overlay.Usage, error) { return s.layers.Usage(ctx, c.ID()) })
}

// alive returns ErrNotFound for a container without a cgroup.
func (s *Service) alive(c *Container) error {
	if p := c.Phase(); p == state.Created || p == state.Running {
		return nil
	}
	return fmt.Errorf("read usage of container %s: %s: %w", c.ID(), c.Phase(), errdefs.ErrNotFound)
}

// unreadable converts the error of reading a container: to ErrNotFound if the container exited
// meanwhile, because then cause is a consequence of the exit.
func (s *Service) unreadable(c *Container, cause error) error {
	if err := s.alive(c); err != nil {
		return err
	}
	return fmt.Errorf("read usage of container %s: %w", c.ID(), cause)
}
