package cri

import (
	"context"
	"io"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime is the pod and container service that the endpoint serves. Its methods must be safe for
// concurrent use.
//
// This package answers the RPCs Exec, Attach and PortForward itself and never calls the Runtime's
// generated methods. Instead it calls a Check method before it issues a URL, and a Serve method
// when a client uses the URL. A Serve method owns its streams until it returns. Its context ends
// when the client's connection closes or the server stops.
type Runtime interface {
	runtimeapi.RuntimeServiceServer

	// CheckExec returns why no command can run in the container now: errdefs.ErrNotFound, or
	// errdefs.ErrFailedPrecondition if the container is not running.
	CheckExec(ctx context.Context, containerID string) error
	// CheckAttach is CheckExec for attaching.
	CheckAttach(ctx context.Context, containerID string) error
	// CheckPortForward returns why no port of the pod can be reached now.
	CheckPortForward(ctx context.Context, podID string) error

	// ServeExec runs cmd in the container and returns when the command has exited and all its
	// output is written. in, out and err are nil if the client did not request them. resize is nil
	// without a terminal and is closed when the client disconnects. A non-zero exit code is an
	// error with the method `ExitStatus() int` in its chain.
	ServeExec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, err io.WriteCloser,
		tty bool, resize <-chan remotecommand.TerminalSize) error
	// ServeAttach connects the client to the container's stdio until the container exits or the
	// client disconnects.
	ServeAttach(ctx context.Context, containerID string, in io.Reader, out, err io.WriteCloser,
		tty bool, resize <-chan remotecommand.TerminalSize) error
	// ServePortForward connects the stream to a TCP port in the pod until either side closes.
	ServePortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}
