package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// SPDY is served here and not by k8s.io/cri-streaming, which passes a stream to its session before
// it has sent the reply that accepts it. If the client is gone by then, sending the reply fails
// silently, and the first write to the stream, or its Close, waits for the reply forever. Here, a
// stream whose reply cannot be sent is dropped.
//
// Two more rules prevent deadlocks in github.com/moby/spdystream. Its workers, which also detect
// the end of a connection, block until their frames are read. So a stream without a reader is
// reset, and nothing waits for a session that has ended.

// spdyConn is a connection on which a client opens streams.
type spdyConn struct {
	*spdystream.Connection
	protocol string
	opened   chan *spdystream.Stream // the receiver must reset each stream
	ended    chan struct{}           // closed when no more streams are accepted
	endOnce  sync.Once
	served   chan struct{} // closed when no more frames are handled
	taken    *takenConn
}

// serveSPDY serves the request behind a URL to a client that speaks SPDY.
func (s *streamServer) serveSPDY(w http.ResponseWriter, r *http.Request, request any) {
	c, isCommand := s.sessions.command(request)
	protocols := portforward.SupportedProtocols
	if isCommand {
		protocols = remotecommand.SupportedStreamingProtocols
	}
	conn, err := takeOver(w, r, protocols)
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "SPDY upgrade failed")
		return
	}
	defer conn.close()
	conn.SetIdleTimeout(s.idleTimeout)
	if isCommand {
		err = s.runOverSPDY(r.Context(), conn, c)
	} else if forward, ok := request.(*runtimeapi.PortForwardRequest); ok {
		s.forwardOverSPDY(r.Context(), conn, forward.GetPodSandboxId())
	}
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "SPDY session not started")
	}
}

// takeOver upgrades a request to SPDY. If it fails, it has already answered the request, as far as
// that is possible.
func takeOver(w http.ResponseWriter, r *http.Request, protocols []string) (*spdyConn, error) {
	if !httpstream.IsUpgradeRequest(r) || !strings.EqualFold(r.Header.Get(httpstream.HeaderUpgrade), spdy.HeaderSpdy31) {
		err := errors.New("upgrade request: neither WebSocket nor " + spdy.HeaderSpdy31)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, err
	}
	protocol, err := httpstream.Handshake(r, w, protocols)
	if err != nil {
		return nil, err
	}
	w.Header().Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	w.Header().Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	w.WriteHeader(http.StatusSwitchingProtocols)
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("hijack connection: %w", err)
	}
	taken := &takenConn{Conn: raw, reader: &frameReader{from: buffered}}
	framed, err := spdystream.NewConnectionWithOptions(taken, true, frameLimits()...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start SPDY: %w", err), raw.Close())
	}
	c := &spdyConn{
		Connection: framed, protocol: protocol, taken: taken,
		opened: make(chan *spdystream.Stream), ended: make(chan struct{}), served: make(chan struct{}),
	}
	go func() {
		defer close(c.served)
		defer func() { _ = raw.Close() }()
		framed.Serve(c.accept)
	}()
	return c, nil
}

// accept sends the reply that accepts a stream, and then passes the stream to the session, if the
// session still accepts streams.
func (c *spdyConn) accept(stream *spdystream.Stream) {
	if err := stream.SendReply(http.Header{}, false); err != nil {
		_ = stream.Reset()
		return
	}
	select {
	case c.opened <- stream:
	case <-c.ended:
		_ = stream.Reset()
	}
}

// acceptNoMore makes accept reset every later stream.
func (c *spdyConn) acceptNoMore() { c.endOnce.Do(func() { close(c.ended) }) }

// close gives the client time to read the last data and to disconnect. All accepted streams must be
// reset before. When close returns, the connection is closed and none of its goroutines waits for
// the peer.
func (c *spdyConn) close() {
	c.acceptNoMore()
	_ = c.taken.SetWriteDeadline(time.Now().Add(sessionGrace))
	// The client may be gone; that makes no difference here.
	_ = c.Connection.Close()
	cut := time.AfterFunc(2*sessionGrace, func() { _ = c.taken.Conn.Close() })
	defer cut.Stop()
	<-c.served
}

// untilClosed returns a context that also ends when the client sends no more frames, because it
// disconnected or said so.
func (c *spdyConn) untilClosed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-c.CloseChan():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// finish closes our side of a stream and discards further input.
func finish(stream *spdystream.Stream) {
	_ = stream.Close() // before Reset, after which a stream cannot be closed properly
	_ = stream.Reset()
}

// runOverSPDY waits until a client has opened its streams, and runs the command.
func (s *streamServer) runOverSPDY(ctx context.Context, conn *spdyConn, c command) error {
	ctx, cancel := conn.untilClosed(ctx)
	defer cancel()
	streams, err := s.open(ctx, conn, c.want)
	conn.acceptNoMore()
	defer func() {
		for _, stream := range streams {
			finish(stream)
		}
	}()
	if err != nil {
		return err
	}
	var std stdio
	// A nil stream must not become an interface that holds a nil.
	if in := streams[remotecommand.StreamTypeStdin]; in != nil {
		std.in = in
	}
	if out := streams[remotecommand.StreamTypeStdout]; out != nil {
		std.out = out
	}
	if errs := streams[remotecommand.StreamTypeStderr]; errs != nil {
		std.errs = errs
	}
	if resize := streams[remotecommand.StreamTypeResize]; resize != nil {
		std.resize = make(chan remotecommand.TerminalSize)
		go forwardSizes(ctx, resize, std.resize)
	}
	err = c.run(ctx, std)
	// The client may be gone.
	_, _ = streams[remotecommand.StreamTypeError].Write(outcome(err, conn.protocol))
	return nil
}

// open waits for the streams of a command and returns them by type. On an error it returns those
// that were opened before.
func (s *streamServer) open(ctx context.Context, conn *spdyConn, want streamsWanted) (map[string]*spdystream.Stream, error) {
	late := time.NewTimer(s.openTimeout)
	defer late.Stop()
	kinds := want.kinds(conn.protocol)
	streams := map[string]*spdystream.Stream{}
	for len(streams) < len(kinds) {
		select {
		case stream := <-conn.opened:
			kind := stream.Headers().Get(remotecommand.StreamType)
			if streams[kind] != nil || !slices.Contains(kinds, kind) {
				_ = stream.Reset()
				continue
			}
			streams[kind] = stream
		case <-ctx.Done():
			return streams, fmt.Errorf("wait for streams: %w", io.ErrUnexpectedEOF)
		case <-s.sessions.server.stopping:
			return streams, fmt.Errorf("wait for streams: %w", errStopping())
		case <-late.C:
			return streams, fmt.Errorf("wait for streams: client opened %d of %d in %s", len(streams), len(kinds), s.openTimeout)
		}
	}
	return streams, nil
}

// kinds returns the types of the streams that a client must open.
func (want streamsWanted) kinds(protocol string) []string {
	kinds := []string{remotecommand.StreamTypeError}
	resizes := protocol == remotecommand.StreamProtocolV3Name || protocol == remotecommand.StreamProtocolV4Name
	for kind, wanted := range map[string]bool{
		remotecommand.StreamTypeStdin:  want.stdin,
		remotecommand.StreamTypeStdout: want.stdout,
		remotecommand.StreamTypeStderr: want.stderr,
		remotecommand.StreamTypeResize: want.tty && resizes,
	} {
		if wanted {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// takenConn is a connection hijacked from the HTTP server.
type takenConn struct {
	net.Conn
	reader io.Reader // of the connection, including data that the HTTP server has buffered
}

// Read implements net.Conn.
func (c *takenConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// Close shuts down the write side and gives the client time to read the rest and to close its side.
// If the connection were closed with unread input, the client could lose the last data sent to it.
// The goroutine that reads the connection closes it.
func (c *takenConn) Close() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		_ = c.Conn.Close() // fails on a second call: it is closed already
		return nil         //nolint:nilerr // without CloseWrite the connection is closed at once
	}
	_ = c.SetReadDeadline(time.Now().Add(sessionGrace))
	return nil
}
