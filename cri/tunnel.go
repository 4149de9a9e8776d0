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

// normalClosure is WebSocket's status code for a normal end.
const normalClosure = 1000

// serveTunnel forwards ports by SPDY inside WebSocket, the only protocol of crictl's WebSocket
// transport and of current kubectl. In a cluster the API server unwraps it, but a client of this
// socket connects directly.
//
//nolint:contextcheck // the context is the one of r
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
		return fmt.Errorf("choose protocol: none of %q is supported", c.Protocol)
	}
	c.Protocol = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
	return nil
}

// tunnel is the http.ResponseWriter of a made-up upgrade request inside a WebSocket. Hijack returns
// the WebSocket. Everything written before is dropped, because the client has already got its
// response.
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

// tunnelConn is a WebSocket with a CloseWrite method.
type tunnelConn struct{ *websocket.Conn }

// CloseWrite sends a close frame; the client replies with another.
func (c tunnelConn) CloseWrite() error { return c.WriteClose(normalClosure) }
