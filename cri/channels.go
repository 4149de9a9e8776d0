package cri

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// maxMessage is the size in bytes of a WebSocket message, which is held as a whole. Clients send what
// they have read at a time, usually 32 KiB.
const maxMessage = 1 << 20

// closeSignal is the channel of messages that close the input of another channel, in v5.
const closeSignal = 255

// channelConn is a WebSocket whose messages begin with the number of a channel.
type channelConn struct {
	conn     *websocket.Conn
	protocol string
	idle     time.Duration
	channels []*channel
	ended    chan struct{} // closed when nothing more is received

	mu      sync.Mutex
	closing bool // the deadline is for closing
}

// channelArgs describes the WebSocket of a session.
type channelArgs struct {
	protocols []string // that are supported
	inputs    []bool   // of each channel, whether the client sends on it
	// serve runs the session. The connection is closed when it returns.
	serve func(*channelConn)
}

// serveChannels upgrades a request and serves the session.
func (s *streamServer) serveChannels(w http.ResponseWriter, r *http.Request, a channelArgs) {
	choose := func(c *websocket.Config, _ *http.Request) error { return chooseProtocol(c, a.protocols) }
	websocket.Server{Handshake: choose, Handler: func(conn *websocket.Conn) {
		conn.MaxPayloadBytes = maxMessage
		ws := &channelConn{conn: conn, protocol: conn.Config().Protocol[0], idle: s.idleTimeout, ended: make(chan struct{})}
		for i, input := range a.inputs {
			ws.channels = append(ws.channels, newChannel(ws, i, input))
		}
		go ws.receive(klog.FromContext(r.Context()))
		defer ws.close()
		a.serve(ws)
	}}.ServeHTTP(w, r)
}

// chooseProtocol chooses the first of the client's protocols that is supported. A client that names
// none gets the protocol "".
func chooseProtocol(c *websocket.Config, supported []string) error {
	offered := c.Protocol
	if len(offered) == 0 {
		offered = []string{""}
	}
	i := slices.IndexFunc(offered, func(protocol string) bool { return slices.Contains(supported, protocol) })
	if i < 0 {
		return fmt.Errorf("choose protocol: none of %q is supported, but %q", c.Protocol, supported)
	}
	c.Protocol = offered[i : i+1]
	return nil
}

// close ends the connection, after a grace for the client to read the outcome.
func (ws *channelConn) close() {
	for _, c := range ws.channels {
		_ = c.in.Close()
	}
	ws.mu.Lock()
	ws.closing = true
	_ = ws.conn.SetDeadline(time.Now().Add(sessionGrace))
	ws.mu.Unlock()
	_ = ws.conn.Close() // fails if the client is gone
	<-ws.ended
}

// touch starts the idle time again.
func (ws *channelConn) touch() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if !ws.closing {
		_ = ws.conn.SetDeadline(time.Now().Add(ws.idle))
	}
}

// receive passes on the client's messages until the connection ends.
func (ws *channelConn) receive(log klog.Logger) {
	defer close(ws.ended)
	defer func() {
		for _, c := range ws.channels {
			_ = c.fill.Close()
		}
	}()
	for {
		ws.touch()
		var message []byte
		if err := websocket.Message.Receive(ws.conn, &message); err != nil {
			if !errors.Is(err, io.EOF) {
				log.Error(err, "WebSocket ended")
				_ = ws.conn.Close() // it may be out of step with the client's frames
			}
			return
		}
		if len(message) > 0 {
			ws.pass(int(message[0]), message[1:])
		}
	}
}

// pass passes a message to its channel. Messages that nothing reads are dropped.
func (ws *channelConn) pass(number int, data []byte) {
	if number == closeSignal && strings.HasPrefix(ws.protocol, "v5.") {
		if len(data) == 1 && int(data[0]) < len(ws.channels) {
			_ = ws.channels[data[0]].fill.Close()
		}
		return
	}
	if ws.base64() {
		number -= '0'
		n, err := base64.StdEncoding.Decode(data, data) // never writes beyond what it has read
		if err != nil {
			return
		}
		data = data[:n]
	}
	if number >= 0 && number < len(ws.channels) && ws.channels[number].input {
		_, _ = ws.channels[number].fill.Write(data) // fails when the input is closed
	}
}

func (ws *channelConn) base64() bool {
	return strings.HasSuffix(ws.protocol, wsstream.Base64ChannelWebSocketProtocol)
}

// channel is one channel of a WebSocket. It implements io.ReadWriteCloser.
type channel struct {
	ws     *channelConn
	number byte
	input  bool // the client sends on it
	in     *io.PipeReader
	fill   *io.PipeWriter
}

func newChannel(ws *channelConn, number int, input bool) *channel {
	c := &channel{ws: ws, number: byte(number), input: input}
	c.in, c.fill = io.Pipe()
	return c
}

// Read implements io.Reader.
func (c *channel) Read(p []byte) (int, error) { return c.in.Read(p) }

// Write sends p as one message, which may be empty.
func (c *channel) Write(p []byte) (int, error) {
	c.ws.touch()
	var err error
	if c.ws.base64() {
		err = websocket.Message.Send(c.ws.conn, string('0'+rune(c.number))+base64.StdEncoding.EncodeToString(p))
	} else {
		err = websocket.Message.Send(c.ws.conn, append([]byte{c.number}, p...))
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the input. A channel has no end of its output.
func (c *channel) Close() error { return c.fill.Close() }
