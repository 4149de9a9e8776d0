package runtimeservice

import (
	"context"
	"fmt"
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/state"
	"github.com/micarun/mica/runtimeservice/streams"
)

// exitError is the error of a command that exited with a code other than 0.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("command ended with exit code %d", e.code) }

// ExitStatus returns the exit code, from 1 to 255; 128 + n if signal n killed the command.
func (e exitError) ExitStatus() int { return e.code }

// CheckExec returns nil if commands can be run in the container. Errors:
// ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition (not running).
func (s *Service) CheckExec(_ context.Context, containerID string) error {
	_, err := s.runningContainer("exec in", containerID)
	return err
}

// ServeExec runs cmd in the container, connected to the client's streams. Streams that the client
// did not request are nil. It returns when the command has exited and its output is written. It
// also waits for processes that the command left behind with its output open, as long as the
// container runs. If ctx ends before the command exits, every process of the command's session is
// killed. The error for an exit code other than 0 has an ExitStatus method. Other errors: those of
// CheckExec and of the OCI runtime.
func (s *Service) ServeExec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize,
) error {
	c, err := s.runningContainer("exec in", containerID)
	if err != nil {
		return err
	}
	defer streams.CloseAll(out, errs)
	run := execRun{cmd: cmd, tty: tty, resize: resize, stdin: in, outputUntil: c.Exited()}
	// A nil stream must not become an interface that holds a nil.
	if out != nil {
		run.stdout = out
	}
	if errs != nil && !tty {
		run.stderr = errs
	}
	code, err := s.exec(ctx, c, run)
	if err != nil {
		return fmt.Errorf("exec %q in container %s: %w", cmd, c.ID(), err)
	}
	if code != 0 {
		return exitError{code: code}
	}
	return nil
}

// execRun is a command to run in a container.
type execRun struct {
	cmd            []string
	tty            bool
	resize         <-chan remotecommand.TerminalSize // nil without a terminal
	stdin          io.Reader                         // nil for none
	stdout, stderr io.Writer                         // nil to discard
	outputUntil    <-chan struct{}                   // as in oci.ExecArgs
}

// exec runs a command in a running container and returns its exit code once
// its output is written.
func (s *Service) exec(ctx context.Context, c *Container, run execRun) (int, error) {
	h, err := s.handler(c.Record().Handler)
	if err != nil {
		return 0, err
	}
	template, err := s.execTemplate(c)
	if err != nil {
		return 0, err
	}
	process, err := template.with(run)
	if err != nil {
		return 0, err
	}
	direct := s.directExec(c, h, template.profile)
	if direct != nil {
		defer direct.Init.Close()
	}
	uid, gid := s.rootOf(c)
	start, cancel := context.WithTimeout(ctx, s.opts.ContainerTimeout)
	defer cancel()
	p, err := h.Exec(start, oci.ExecArgs{
		ID: c.ID(), Process: process, UID: uid, GID: gid,
		Stdin: run.stdin, Stdout: run.stdout, Stderr: run.stderr, OutputUntil: run.outputUntil, Direct: direct,
	})
	if err != nil {
		return 0, wire.NameLimit(err, "micad", "micad.service")
	}
	ended := make(chan struct{})
	defer close(ended)
	if run.resize != nil {
		go streams.FollowSize(ended, run.resize, func(size remotecommand.TerminalSize) {
			if err := p.Resize(size.Width, size.Height); err != nil {
				klog.FromContext(ctx).V(2).Info("Resizing exec terminal failed", "container", c.ID(), "err", err)
			}
		})
	}
	return p.Wait(ctx)
}

// runningContainer finds a container. It returns ErrFailedPrecondition, with the action, unless the
// container is running.
func (s *Service) runningContainer(action, id string) (*Container, error) {
	c, err := s.containers.Get(id)
	if err != nil {
		return nil, fmt.Errorf("%s container: %w", action, err)
	}
	return c, c.Require(action, state.Running)
}
