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

// SPDY is served here and not by k8s.io/cri-streaming, which hands a stream to its
// session before the reply that accepts it is written. If the client is gone by then,
// that reply fails, nobody learns of it, and the first write to the stream, or its
// closing, waits for the reply for ever. Here a stream whose reply cannot be written
// is no stream.
//
// Two more rules keep github.com/moby/spdystream from being stuck. Its workers, which
// also tell a connection's end, wait until what they bring is taken; so a stream that
// nobody reads any more is reset, and nobody waits for a session that has ended.

// spdyConn is a connection on which a client opens streams.
type spdyConn struct {
	*spdystream.Connection
	protocol string
	opened   chan *spdystream.Stream // each is to be reset by who takes it
	ended    chan struct{}           // closed when no stream is taken any more
	endOnce  sync.Once
	served   chan struct{} // closed when no frame is handled any more
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
		klog.FromContext(r.Context()).Error(err, "SPDY refused")
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
		klog.FromContext(r.Context()).Error(err, "SPDY session ended before it began")
	}
}

// takeOver answers a request to change to SPDY. An error is what the client was
// answered instead, or why it could not be answered.
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
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	taken := &takenConn{Conn: raw, reader: buffered}
	framed, err := spdystream.NewConnection(taken, true)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over connection: %w", err), raw.Close())
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

// accept hands a stream to the session, if that still takes any, once its client has
// been told so.
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

// acceptNoMore resets every stream that the client opens from now on.
func (c *spdyConn) acceptNoMore() { c.endOnce.Do(func() { close(c.ended) }) }

// close lets the client take in what it was sent last, and go. The streams that were
// taken must have been reset. When it returns, the connection is closed and no
// goroutine of it left that waits for a peer.
func (c *spdyConn) close() {
	c.acceptNoMore()
	_ = c.taken.SetWriteDeadline(time.Now().Add(sessionGrace))
	// Whether the client can still be told makes no difference here.
	_ = c.Connection.Close()
	cut := time.AfterFunc(2*sessionGrace, func() { _ = c.taken.Conn.Close() })
	defer cut.Stop()
	<-c.served
}

// untilClosed returns a context that also ends when the client sends no more frames,
// be it because it is gone or because it says so.
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

// finish ends what we send on a stream, and heeds nothing more that comes on it.
func finish(stream *spdystream.Stream) {
	_ = stream.Close() // before, as what is reset cannot be ended properly
	_ = stream.Reset()
}

// runOverSPDY runs a command for a client once that has opened its streams.
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
	// A client that is gone cannot be told.
	_, _ = streams[remotecommand.StreamTypeError].Write(outcome(err, conn.protocol))
	return nil
}

// open waits for the streams of a command, and returns by their types also those that
// came before an error.
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
			return streams, fmt.Errorf("wait for streams: %d of %d came in %s", len(streams), len(kinds), s.openTimeout)
		}
	}
	return streams, nil
}

// kinds are the types of the streams that a client opens.
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

// takenConn is a connection taken over from the HTTP server.
type takenConn struct {
	net.Conn
	reader io.Reader // the connection's, with what has been read ahead
}

// Read implements net.Conn.
func (c *takenConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// Close tells the client that nothing more will come, and gives it time to take in
// what has come and to close its end: were ours closed with something unread, the
// client could lose what it was sent last. Who reads the connection closes it then.
func (c *takenConn) Close() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		_ = c.Conn.Close() // at the second time: it is closed already
		return nil
	}
	_ = c.SetReadDeadline(time.Now().Add(sessionGrace))
	return nil
}
