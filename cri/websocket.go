package cri

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Exec and attach over WebSocket are served here and not by k8s.io/cri-streaming,
// which lacks v5 of the protocol, the only one that crictl and current kubectl
// offer, and which hands out streams that a client did not ask for, so that an
// attachment without input reads as one whose input has ended.

// The channels of the protocol, in the order of their numbers.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount
)

// streamsWanted are what a client asked for.
type streamsWanted struct{ stdin, stdout, stderr, tty bool }

// stdio are the streams of a session; nil where the client did not ask for one.
type stdio struct {
	in     io.Reader
	out    io.WriteCloser
	errs   io.WriteCloser
	resize chan remotecommand.TerminalSize
}

// serveWebSocket serves the request behind a URL; false if that is not one for here.
func (s *streamServer) serveWebSocket(w http.ResponseWriter, r *http.Request, request any) bool {
	switch q := request.(type) {
	case *runtimeapi.ExecRequest:
		want := streamsWanted{q.GetStdin(), q.GetStdout(), q.GetStderr(), q.GetTty()}
		s.serveChannels(w, r, want, func(ctx context.Context, std stdio) error {
			return s.sessions.Exec(ctx, q.GetContainerId(), q.GetCmd(), std.in, std.out, std.errs, want.tty, std.resize)
		})
	case *runtimeapi.AttachRequest:
		want := streamsWanted{q.GetStdin(), q.GetStdout(), q.GetStderr(), q.GetTty()}
		s.serveChannels(w, r, want, func(ctx context.Context, std stdio) error {
			return s.sessions.Attach(ctx, q.GetContainerId(), std.in, std.out, std.errs, want.tty, std.resize)
		})
	default:
		return false
	}
	return true
}

func (s *streamServer) serveChannels(w http.ResponseWriter, r *http.Request, want streamsWanted, serve func(context.Context, stdio) error) {
	conn := wsstream.NewConn(want.protocols())
	conn.SetIdleTimeout(s.idleTimeout)
	protocol, channels, err := conn.Open(w, r)
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "WebSocket refused")
		return
	}
	defer func() { _ = conn.Close() }()
	// An empty message on the first channel that is written tells the client that
	// the session begins.
	if _, err := channels[want.first()].Write(nil); err != nil {
		return
	}
	streams := want.pick(channels)
	if streams.resize != nil {
		go forwardSizes(r.Context(), channels[channelResize], streams.resize)
	}
	err = serve(r.Context(), streams)
	// A client that is gone cannot be told.
	_, _ = channels[channelError].Write(outcome(err, protocol))
}

// protocols are the versions that are spoken, with the channels of this session.
func (want streamsWanted) protocols() map[string]wsstream.ChannelProtocolConfig {
	channels := make([]wsstream.ChannelType, channelCount)
	set := func(number int, wanted bool, kind wsstream.ChannelType) {
		if wanted {
			channels[number] = kind
		}
	}
	set(channelStdin, want.stdin, wsstream.ReadChannel)
	set(channelStdout, want.stdout, wsstream.WriteChannel)
	set(channelStderr, want.stderr, wsstream.WriteChannel)
	set(channelError, true, wsstream.WriteChannel)
	set(channelResize, want.tty, wsstream.ReadChannel)
	binary := wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	base64 := wsstream.ChannelProtocolConfig{Channels: channels}
	return map[string]wsstream.ChannelProtocolConfig{
		"":                                      binary,
		wsstream.ChannelWebSocketProtocol:       binary,
		wsstream.Base64ChannelWebSocketProtocol: base64,
		"v4." + wsstream.ChannelWebSocketProtocol:       binary,
		"v4." + wsstream.Base64ChannelWebSocketProtocol: base64,
		"v5." + wsstream.ChannelWebSocketProtocol:       binary,
	}
}

func (want streamsWanted) first() int {
	switch {
	case want.stdout:
		return channelStdout
	case want.stderr:
		return channelStderr
	}
	return channelError
}

func (want streamsWanted) pick(channels []io.ReadWriteCloser) stdio {
	var streams stdio
	if want.stdin {
		streams.in = channels[channelStdin]
	}
	if want.stdout {
		streams.out = channels[channelStdout]
	}
	if want.stderr {
		streams.errs = channels[channelStderr]
	}
	if want.tty {
		streams.resize = make(chan remotecommand.TerminalSize)
	}
	return streams
}

// forwardSizes sends the sizes that arrive on from until the connection or ctx ends.
func forwardSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for sizes := json.NewDecoder(from); ; {
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

// sessionStatus is the part of a Kubernetes Status object that says how a session
// ended.
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

// outcome is what the error channel carries at the end of a session: a Status
// object, or before v4 of the protocol the bare text of an error.
func outcome(err error, protocol string) []byte {
	if len(protocol) == 0 || protocol[0] != 'v' {
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
		return []byte(merr.Error()) // strings and numbers always encode
	}
	return text
}
