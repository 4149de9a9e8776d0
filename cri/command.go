package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// streamsWanted is the set of streams that a client requested.
type streamsWanted struct{ stdin, stdout, stderr, tty bool }

func wantedByExec(q *runtimeapi.ExecRequest) streamsWanted {
	return streamsWanted{q.GetStdin(), q.GetStdout(), q.GetStderr(), q.GetTty()}
}

func wantedByAttach(q *runtimeapi.AttachRequest) streamsWanted {
	return streamsWanted{q.GetStdin(), q.GetStdout(), q.GetStderr(), q.GetTty()}
}

// check returns ErrInvalidArgument for streams that no session has.
func (want streamsWanted) check() error {
	switch {
	case want.tty && want.stderr:
		return fmt.Errorf("tty and stderr cannot both be true: %w", errdefs.ErrInvalidArgument)
	case !want.stdin && !want.stdout && !want.stderr:
		return fmt.Errorf("one of stdin, stdout or stderr must be true: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// stdio holds the streams of a session; nil for those that the client did not request.
type stdio struct {
	in     io.Reader
	out    io.WriteCloser
	errs   io.WriteCloser
	resize chan remotecommand.TerminalSize
}

// command is an exec or attach session for which a URL was issued.
type command struct {
	want streamsWanted
	run  func(context.Context, stdio) error
}

// command returns the exec or attach session of a request; ok is false for a port-forward.
func (s *sessions) command(request any) (c command, ok bool) {
	switch q := request.(type) {
	case *runtimeapi.ExecRequest:
		c.want = wantedByExec(q)
		c.run = func(ctx context.Context, std stdio) error {
			return s.Exec(ctx, q.GetContainerId(), q.GetCmd(), std.in, std.out, std.errs, q.GetTty(), std.resize)
		}
	case *runtimeapi.AttachRequest:
		c.want = wantedByAttach(q)
		c.run = func(ctx context.Context, std stdio) error {
			return s.Attach(ctx, q.GetContainerId(), std.in, std.out, std.errs, q.GetTty(), std.resize)
		}
	default:
		return command{}, false
	}
	return c, true
}

// maxSizeBytes limits the text of one terminal size, which the decoder holds.
const maxSizeBytes = 4 << 10

// forwardSizes decodes terminal sizes from a stream and sends them on the channel until the
// connection or ctx ends, or what the client sends is no size. It then closes the channel and
// discards the rest of the stream.
func forwardSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer func() { _, _ = io.Copy(io.Discard, from) }()
	defer close(to)
	limited := &io.LimitedReader{R: from}
	for sizes := json.NewDecoder(limited); ; {
		limited.N = maxSizeBytes
		var size remotecommand.TerminalSize
		if sizes.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// sessionStatus is the part of a Kubernetes Status object that describes how a session ended.
type sessionStatus struct {
	Status  string          `json:"status"`
	Message string          `json:"message,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Details *sessionDetails `json:"details,omitempty"`
	Code    int             `json:"code,omitempty"`
}

type sessionDetails struct {
	Causes []sessionCause `json:"causes"`
}

type sessionCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// outcome returns the message for the error channel at the end of a session: a Status object, or,
// before v4 of the protocol, the text of the error.
func outcome(err error, protocol string) []byte {
	if !strings.HasPrefix(protocol, "v4.") && !strings.HasPrefix(protocol, "v5.") {
		if err == nil {
			return nil
		}
		return []byte(err.Error())
	}
	status := sessionStatus{Status: "Success"}
	var exit exited
	switch {
	case errors.As(err, &exit):
		cause := sessionCause{Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.code)}
		status = sessionStatus{
			Status:  "Failure",
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with " + exit.Error(),
			Details: &sessionDetails{Causes: []sessionCause{cause}},
		}
	case err != nil:
		status = sessionStatus{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	}
	text, merr := json.Marshal(status)
	if merr != nil {
		return []byte(merr.Error()) // impossible: strings and numbers always encode
	}
	return text
}
