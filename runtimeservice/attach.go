package runtimeservice

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/keeper"
)

// attachLinger is how long a client whose input has ended gets the answer to
// the last of it.
const attachLinger = time.Second

// CheckAttach returns nil if clients can attach to the container. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running).
func (s *Service) CheckAttach(_ context.Context, containerID string) error {
	_, err := s.runningContainer("attach to", containerID)
	return err
}

// ServeAttach connects the client's streams, of which those that it did not
// ask for are nil, to those of the container's own process, until the container
// ends or the client goes. The container decides about the terminal.
//
// The end of the client's input ends the session too, as it does with Docker,
// but for a container that is to see that end as the end of its own input
// (stdin_once without a terminal): there the session waits for the container.
// Errors: as CheckAttach, and the keeper's.
func (s *Service) ServeAttach(ctx context.Context, containerID string, in io.Reader, out, errs io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize,
) error {
	c, err := s.runningContainer("attach to", containerID)
	if err != nil {
		return err
	}
	defer closeAll(out, errs)
	cfg := c.config()
	att, err := s.keeper.Attach(ctx, c.ID, keeper.AttachArgs{Stdin: in != nil, Stdout: out != nil, Stderr: errs != nil && !cfg.GetTty()})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID, err)
	}
	defer func() { _ = att.Close() }()
	ended := make(chan struct{})
	defer close(ended)
	if resize != nil && cfg.GetTty() {
		go followSize(ended, resize, func(size remotecommand.TerminalSize) {
			if err := s.keeper.Resize(ctx, c.ID, size.Width, size.Height); err != nil {
				klog.FromContext(ctx).V(2).Info("Terminal of a container keeps its size", "container", c.ID, "err", err)
			}
		})
	}
	session := attachSession{
		input:  feed(att.Stdin, in),
		output: drain(copyStream{to: out, from: att.Stdout}, copyStream{to: errs, from: att.Stderr}),
		exited: c.exited,
		linger: attachLinger,
		// The copy to the container closes its end with the client's.
		outliveInput: cfg.GetStdinOnce() && !cfg.GetTty(),
	}
	session.wait(ctx)
	return nil
}

// attachSession are the ends that an attached client can come to.
type attachSession struct {
	input        <-chan struct{} // closed at the end of the client's input; nil without one
	output       <-chan struct{} // closed when all output is copied; nil without any
	exited       <-chan struct{} // closed when the container has ended
	linger       time.Duration   // for the answer to the last input
	outliveInput bool            // the output counts, also after the input's end
}

func (a attachSession) wait(ctx context.Context) {
	exited := a.exited
	if a.output != nil {
		exited = nil // what the container has written last is still to come
	}
	select {
	case <-a.output:
		return
	case <-exited:
		return
	case <-ctx.Done():
		return
	case <-a.input:
	}
	var patience <-chan time.Time
	if !a.outliveInput {
		timer := time.NewTimer(a.linger)
		defer timer.Stop()
		patience = timer.C
	}
	select {
	case <-a.output:
	case <-exited:
	case <-ctx.Done():
	case <-patience:
	}
}

// feed copies the client's input to the container in the background, until the
// client ends it, and closes the container's end. What a container without an
// input, or one that has closed it, is sent is dropped. The result is nil for a
// client without an input.
func feed(to io.WriteCloser, from io.Reader) <-chan struct{} {
	if from == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if to != nil {
			_, err := io.Copy(to, from)
			_ = to.Close()
			if err == nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, from)
	}()
	return done
}

// copyStream is one stream of output and the client's end of it.
type copyStream struct {
	to   io.Writer
	from io.ReadCloser
}

// drain copies the streams that are there in the background, each until either
// side ends. The result is nil without any.
func drain(streams ...copyStream) <-chan struct{} {
	var group sync.WaitGroup
	copies := 0
	for _, stream := range streams {
		if stream.from == nil {
			continue
		}
		copies++
		group.Go(func() { _, _ = io.Copy(stream.to, stream.from) })
	}
	if copies == 0 {
		return nil
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	return done
}
