package runtimeservice

import (
	"context"
	"fmt"
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/streams"
)

// CheckAttach returns nil if clients can attach to the container. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running).
func (s *Service) CheckAttach(_ context.Context, containerID string) error {
	_, err := s.runningContainer("attach to", containerID)
	return err
}

// ServeAttach connects the client's streams with the streams of the container's first process,
// until the container exits or the client disconnects. Streams that the client did not request are
// nil. Whether there is a terminal depends on the container.
//
// The end of the client's input ends the session, too, as with Docker. Only if the container gets
// that end as the end of its own input (stdin_once without a terminal), the session waits for the
// container. Errors: those of CheckAttach and of the keeper.
func (s *Service) ServeAttach(ctx context.Context, containerID string, in io.Reader, out, errs io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize,
) error {
	c, err := s.runningContainer("attach to", containerID)
	if err != nil {
		return err
	}
	defer streams.CloseAll(out, errs)
	cfg := c.Config()
	att, err := s.keeper.Attach(ctx, c.ID(), keeper.AttachArgs{Stdin: in != nil, Stdout: out != nil, Stderr: errs != nil && !cfg.GetTty()})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID(), err)
	}
	defer func() { _ = att.Close() }()
	ended := make(chan struct{})
	defer close(ended)
	if resize != nil && cfg.GetTty() {
		go streams.FollowSize(ended, resize, func(size remotecommand.TerminalSize) {
			if err := s.keeper.Resize(ctx, c.ID(), size.Width, size.Height); err != nil {
				klog.FromContext(ctx).V(2).Info("Resizing terminal failed", "container", c.ID(), "err", err)
			}
		})
	}
	streams.Attach(ctx, streams.AttachArgs{
		In: in, Out: out, Err: errs,
		Stdin: att.Stdin, Stdout: att.Stdout, Stderr: att.Stderr,
		Exited: c.Exited(), OutliveInput: cfg.GetStdinOnce() && !cfg.GetTty(),
	})
	return nil
}
