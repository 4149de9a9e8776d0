package cri

import (
	"context"
	"io"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime is what the endpoint serves: pods and containers. All methods are
// called concurrently.
//
// The generated RPCs Exec, Attach and PortForward are answered by this package
// and never reach the Runtime; it has a Check and a Serve method for each
// instead, called before a URL is given out and when a client uses it. Serve
// methods own their streams until they return, and their context ends when the
// client's connection closes or the server stops.
type Runtime interface {
	runtimeapi.RuntimeServiceServer

	// CheckExec says why nothing can be executed in the container now:
	// errdefs.ErrNotFound, errdefs.ErrFailedPrecondition when it does not run.
	CheckExec(ctx context.Context, containerID string) error
	// CheckAttach is CheckExec for attaching.
	CheckAttach(ctx context.Context, containerID string) error
	// CheckPortForward says why no port of the pod can be reached now.
	CheckPortForward(ctx context.Context, podID string) error

	// ServeExec runs cmd in the container and returns when it has ended and its
	// output is written. in, out and err are nil where the client did not ask for
	// them; resize is nil without a terminal and closes when the client is gone. A
	// command that ended with another code than 0 is an error with an
	// `ExitStatus() int` in its chain.
	ServeExec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, err io.WriteCloser,
		tty bool, resize <-chan remotecommand.TerminalSize) error
	// ServeAttach connects the client to the container's own stdio until the
	// container or the client ends.
	ServeAttach(ctx context.Context, containerID string, in io.Reader, out, err io.WriteCloser,
		tty bool, resize <-chan remotecommand.TerminalSize) error
	// ServePortForward connects the stream to a TCP port inside the pod until
	// either side closes.
	ServePortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}
