package cri

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	"k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// normalClosure is WebSocket's code for an end that nobody need worry about.
const normalClosure = 1000

// serveTunnel forwards ports by SPDY inside of a WebSocket, which is all that
// crictl's WebSocket transport and current kubectl speak. In a cluster the API
// server unpacks it; a client of this socket has nobody in between.
func (s *streamServer) serveTunnel(w http.ResponseWriter, r *http.Request, request any) {
	websocket.Server{Handshake: chooseTunnel, Handler: func(conn *websocket.Conn) {
		conn.PayloadType = websocket.BinaryFrame
		inner := r.Clone(r.Context())
		inner.Header = http.Header{}
		inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
		inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
		inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
		s.serveSPDY(&tunnel{conn: tunnelConn{conn}, header: http.Header{}}, inner, request)
	}}.ServeHTTP(w, r)
}

func chooseTunnel(c *websocket.Config, _ *http.Request) error {
	if !slices.Contains(c.Protocol, portforward.WebsocketsSPDYTunnelingPortForwardV1) {
		return fmt.Errorf("choose protocol: %q are not known", c.Protocol)
	}
	c.Protocol = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
	return nil
}

// tunnel is the answer to a request that was never sent: taking over its
// connection takes over the WebSocket, and what is said before goes nowhere,
// since the client has been told that it is connected.
type tunnel struct {
	conn   net.Conn
	header http.Header
}

// Header implements http.ResponseWriter.
func (t *tunnel) Header() http.Header { return t.header }

// Write implements http.ResponseWriter.
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (t *tunnel) WriteHeader(int) {}

// Hijack implements http.Hijacker.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

// tunnelConn is a WebSocket that can say that nothing more will come.
type tunnelConn struct{ *websocket.Conn }

// CloseWrite sends what ends a WebSocket; the client answers with the same.
func (c tunnelConn) CloseWrite() error { return c.WriteClose(normalClosure) }
