package runtimeservice

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats answers with what a container uses. Of one that has ended
// only the writable layer is left. Errors: ErrNotFound, ErrInvalidArgument.
func (s *Service) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.containers.get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("container stats: %w", err)
	}
	stats, err := s.containerStats(ctx, c)
	if errdefs.IsNotFound(err) {
		stats, err = s.endedStats(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// containerStats reads a container that is created or runs. One that is not,
// or ends meanwhile, is ErrNotFound.
func (s *Service) containerStats(ctx context.Context, c *Container) (*runtimeapi.ContainerStats, error) {
	if err := s.alive(c); err != nil {
		return nil, err
	}
	st, err := s.cgroups.Stats(s.containerCgroup(c))
	if err != nil {
		return nil, s.unreadable(c, err)
	}
	stats, err := s.endedStats(ctx, c)
	if err != nil {
		return nil, s.unreadable(c, err)
	}
	start := c.snapshot().Started
	if start.IsZero() {
		start = c.Created
	}
	stats.Cpu = cpuUsage(st, c.usage.rate(st.Time, st.CPU.Usage, start))
	stats.Memory, stats.Swap, stats.Io = memoryUsage(st), swapUsage(st), ioUsage(st)
	return stats, nil
}

// endedStats is what can be told of a container without processes.
func (s *Service) endedStats(ctx context.Context, c *Container) (*runtimeapi.ContainerStats, error) {
	layer, err := s.layerUsage(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read usage of container %s: %w", c.ID, err)
	}
	cfg := c.config()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          c.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      maps.Clone(cfg.GetLabels()),
			Annotations: maps.Clone(cfg.GetAnnotations()),
		},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp:  layer.at.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.opts.DataDir},
			UsedBytes:  uint64Value(layer.usage.Bytes),
			InodesUsed: uint64Value(layer.usage.Inodes),
		},
	}, nil
}

// alive is ErrNotFound for a container without a cgroup.
func (s *Service) alive(c *Container) error {
	switch c.phase() {
	case Created, Running:
		return nil
	}
	return fmt.Errorf("read usage of container %s: %s: %w", c.ID, c.phase(), errdefs.ErrNotFound)
}

// unreadable says why a container could not be read: ErrNotFound if it ended
// meanwhile, whatever that made the reading stumble over.
func (s *Service) unreadable(c *Container, cause error) error {
	if err := s.alive(c); err != nil {
		return err
	}
	return fmt.Errorf("read usage of container %s: %w", c.ID, cause)
}
