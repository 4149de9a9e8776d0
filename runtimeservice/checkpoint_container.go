package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/state"
)

// CheckpointContainer writes an archive with the state of a running container to the request's
// location, either whole or not at all. Package checkpoint describes the archive. The container is
// frozen until its state is captured, and then continues, also if writing the archive fails.
// Errors: ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running, or this node cannot
// checkpoint it), the end of ctx or of the request's timeout, and those of CRIU.
func (s *Service) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	c, err := s.containers.Get(req.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("checkpoint container: %w", err)
	}
	if req.GetTimeout() < 0 {
		return nil, fmt.Errorf("checkpoint container %s: timeout %d: %w", c.ID(), req.GetTimeout(), errdefs.ErrInvalidArgument)
	}
	if err := checkpoint.CheckLocation(req.GetLocation()); err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", c.ID(), err)
	}
	limit := cmp.Or(time.Duration(req.GetTimeout())*time.Second, s.opts.CheckpointTimeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = s.whole(ctx, operation{"checkpoint container", s.subject(c)}, func(ctx context.Context) error {
		return s.checkpointContainer(ctx, c, req.GetLocation())
	})
	if err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", c.ID(), err)
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// whole runs f on the caller's context and waits for its end, even if the context ends first. Close
// waits for f, too.
func (s *Service) whole(ctx context.Context, o operation, f func(context.Context) error) error {
	work, op := s.operations.Begin(ctx, o.what, o.on)
	done := make(chan error, 1)
	s.background.Go(func() { done <- f(work) })
	err := <-done
	op.End(err)
	return err
}

func (s *Service) checkpointContainer(ctx context.Context, c *Container, location string) (err error) {
	by, err := s.prepareCheckpoint(ctx, c)
	if err != nil {
		return err
	}
	var temp string
	j, err := s.beginJob(ctx, []*Container{c}, func(name string) []string {
		temp = checkpoint.TempName(location, name)
		return []string{temp}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.endJob(ctx, j, err != nil)) }()
	if err := s.freeze(ctx, j); err != nil {
		return err
	}
	dir := filepath.Join(j.dir, c.ID())
	if err := s.capture(ctx, captureArgs{c: c, by: by, dir: dir, shm: true}); err != nil {
		return err
	}
	if err := failpoint.Hit("checkpoint-captured"); err != nil {
		return err
	}
	if err := s.thaw(j); err != nil {
		return err
	}
	operations.Enter(ctx, "write archive")
	return checkpoint.Write(ctx, checkpoint.WriteArgs{From: dir, Temp: temp, Location: location})
}

// prepareCheckpoint returns what can checkpoint the container, or why nothing can.
func (s *Service) prepareCheckpoint(ctx context.Context, c *Container) (checkpointer, error) {
	if err := c.Require("checkpoint", state.Running); err != nil {
		return checkpointer{}, err
	}
	return s.checkpointer(ctx, c.Record().Handler)
}
