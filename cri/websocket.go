package cri

import (
	"io"
	"net/http"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Exec and attach over WebSocket are served here and not by k8s.io/cri-streaming. That library
// lacks v5 of the protocol, the only version that crictl and current kubectl offer. It also passes
// streams that the client did not request, so that an attach without stdin looks like one whose
// stdin has ended.

// The protocol's channel numbers, in order.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount
)

// serveWebSocket runs a command for a client that speaks WebSocket.
func (s *streamServer) serveWebSocket(w http.ResponseWriter, r *http.Request, c command) {
	want := c.want
	conn := wsstream.NewConn(want.protocols())
	conn.SetIdleTimeout(s.idleTimeout)
	protocol, channels, err := conn.Open(w, r)
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "WebSocket upgrade failed")
		return
	}
	defer func() { _ = conn.Close() }()
	// An empty message on the first output channel tells the client that the session begins.
	if _, err := channels[want.first()].Write(nil); err != nil {
		return
	}
	streams := want.pick(channels)
	if streams.resize != nil {
		go forwardSizes(r.Context(), channels[channelResize], streams.resize)
	}
	err = c.run(r.Context(), streams)
	// The client may be gone.
	_, _ = channels[channelError].Write(outcome(err, protocol))
}

// protocols returns the supported versions with this session's channels.
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
