package cri

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// WebSocket is served here and not by k8s.io/cri-streaming. That library lacks v5 of the protocol for
// exec and attach, the only version that crictl and current kubectl offer. It passes streams that the
// client did not request, so that an attach without stdin looks like one whose stdin has ended. And it
// holds messages of up to 32 MiB.

// The channel numbers of exec and attach, in order.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount
)

// Names of the protocols.
const (
	binaryChannels = wsstream.ChannelWebSocketProtocol
	base64Channels = wsstream.Base64ChannelWebSocketProtocol
)

// serveWebSocket runs a command for a client that speaks WebSocket.
//
//nolint:contextcheck // the context is the one of r
func (s *streamServer) serveWebSocket(w http.ResponseWriter, r *http.Request, c command) {
	inputs := make([]bool, channelCount)
	inputs[channelStdin], inputs[channelResize] = c.want.stdin, c.want.tty
	s.serveChannels(w, r, channelArgs{
		protocols: []string{"", binaryChannels, base64Channels, "v4." + binaryChannels, "v4." + base64Channels, "v5." + binaryChannels},
		inputs:    inputs,
		serve: func(ws *channelConn) {
			// An empty message on the first output channel tells the client that the session begins.
			if _, err := ws.channels[c.want.first()].Write(nil); err != nil {
				return
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			streams := c.want.pick(ws.channels)
			if streams.resize != nil {
				go forwardSizes(ctx, ws.channels[channelResize], streams.resize)
			}
			err := c.run(ctx, streams)
			// The client may be gone.
			_, _ = ws.channels[channelError].Write(outcome(err, ws.protocol))
		},
	})
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

func (want streamsWanted) pick(channels []*channel) stdio {
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

// forwardOverWebSocket serves the ports of a request by the older protocol: each port has a channel
// for data and one for errors, which begin with the port's number.
//
//nolint:contextcheck // the context is the one of r
func (s *streamServer) forwardOverWebSocket(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest) {
	if len(q.GetPort()) == 0 {
		http.Error(w, "the request names no port, which this protocol needs", http.StatusBadRequest)
		return
	}
	var inputs []bool
	for range q.GetPort() {
		inputs = append(inputs, true, false)
	}
	s.serveChannels(w, r, channelArgs{
		protocols: []string{"", "v4." + binaryChannels, "v4." + base64Channels},
		inputs:    inputs,
		serve: func(ws *channelConn) {
			ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
			defer cancel()
			go func() {
				<-ws.ended
				time.AfterFunc(sessionGrace, cancel) // what the client has sent still reaches the pod
			}()
			var running sync.WaitGroup
			for i, port := range q.GetPort() {
				data, errs := ws.channels[2*i], ws.channels[2*i+1]
				number := binary.LittleEndian.AppendUint16(nil, uint16(port))
				for _, c := range []*channel{data, errs} {
					if _, err := c.Write(number); err != nil {
						cancel()
					}
				}
				running.Go(func() {
					if err := s.sessions.PortForward(ctx, q.GetPodSandboxId(), port, data); err != nil {
						_, _ = fmt.Fprint(errs, forwardFailure(q.GetPodSandboxId(), port, err))
					}
					_ = data.Close()
				})
			}
			running.Wait()
		},
	})
}
