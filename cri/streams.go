package cri

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

const (
	// headerTimeout is how long a client may take to send its request, and to read an answer that
	// begins no session.
	headerTimeout = 10 * time.Second
	// maxRequestHeaders is in bytes. net/http adds 4 KiB.
	maxRequestHeaders = 16 << 10
	// sessionGrace is how long sessions may take to end when the server stops, and how long their
	// clients may take to read the outcome.
	sessionGrace = 2 * time.Second
)

// streamServer is the HTTP server for the URLs of Exec, Attach and PortForward. It serves SPDY,
// WebSocket, and SPDY inside WebSocket. Its listener ends a session's context with the connection.
type streamServer struct {
	tickets     tickets
	sessions    *sessions
	idleTimeout time.Duration
	openTimeout time.Duration // for a SPDY client to open its streams
	listener    *watchedListener
	http        *http.Server
}

func newStreamServer(s *Server, rt Runtime) (*streamServer, error) {
	o := s.opts.Streaming
	tlsConfig, err := o.tlsConfig()
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w", err)
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w", err)
	}
	base := url.URL{Scheme: "http", Host: l.Addr().String()}
	if tlsConfig != nil {
		base.Scheme = "https"
	}
	watched := &watchedListener{Listener: l, conns: map[*watchedConn]struct{}{}}
	watched.probe.Store(int64(probeInterval))
	streams := &streamServer{
		tickets:  tickets{base: base, open: map[string]ticket{}},
		sessions: &sessions{server: s, runtime: rt}, idleTimeout: o.IdleTimeout, openTimeout: o.CreationTimeout, listener: watched,
	}
	streams.http = &http.Server{
		Handler:   streams,
		TLSConfig: tlsConfig,
		Protocols: onlyHTTP1(),
		// Sessions take their connections over, which ends these limits.
		ReadTimeout:    headerTimeout,
		WriteTimeout:   headerTimeout,
		MaxHeaderBytes: maxRequestHeaders,
		BaseContext:    func(net.Listener) context.Context { return klog.NewContext(context.Background(), demoted(s.log)) },
		ConnContext:    watched.connContext,
		ErrorLog:       slog.NewLogLogger(logr.ToSlogHandler(demoted(s.log)), slog.LevelDebug),
	}
	// A connection serves one URL.
	streams.http.SetKeepAlivesEnabled(false)
	return streams, nil
}

// demoted returns a logger for libraries that log every disconnect as an error. It logs their
// errors at the verbosity of calls that only read.
func demoted(log klog.Logger) klog.Logger { return log.WithSink(quietSink{log.GetSink()}) }

type quietSink struct{ logr.LogSink }

// Error implements logr.LogSink.
func (s quietSink) Error(err error, msg string, kv ...any) {
	if s.Enabled(verbosityRead) {
		s.Info(verbosityRead, msg, append(kv, "err", err)...)
	}
}

// WithValues implements logr.LogSink.
func (s quietSink) WithValues(kv ...any) logr.LogSink { return quietSink{s.LogSink.WithValues(kv...)} }

// WithName implements logr.LogSink.
func (s quietSink) WithName(name string) logr.LogSink { return quietSink{s.LogSink.WithName(name)} }

// ServeHTTP serves the session of a URL that was issued, and 404 for any other URL.
func (s *streamServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, ok := s.tickets.take(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	webSocket := wsstream.IsWebSocketRequest(r)
	c, isCommand := s.sessions.command(request)
	forward, isForward := request.(*runtimeapi.PortForwardRequest)
	switch {
	case webSocket && isCommand:
		s.serveWebSocket(w, r, c)
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		s.serveTunnel(w, r, request)
	case webSocket && isForward:
		s.forwardOverWebSocket(w, r, forward)
	default:
		s.serveSPDY(w, r, request)
	}
}

// onlyHTTP1 disables HTTP/2, whose connections cannot be hijacked.
func onlyHTTP1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

func (o StreamingOptions) tlsConfig() (*tls.Config, error) {
	if o.TLSCert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

func (s *streamServer) serve() error {
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// close gives the sessions, which are already stopping, time to send their outcome to the clients,
// and then closes the remaining connections. A client that loses its connection without an outcome
// assumes success.
func (s *streamServer) close() error {
	err := s.http.Close()
	if cerr := s.listener.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	s.listener.closeConns(sessionGrace)
	return err
}

// watchedListener tracks its open connections, including those hijacked from the HTTP server.
type watchedListener struct {
	net.Listener
	probe atomic.Int64   // nanoseconds between looks at clients that are not read from
	open  sync.WaitGroup // counts conns

	mu    sync.Mutex
	conns map[*watchedConn]struct{}
}

// Accept implements net.Listener.
func (l *watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &watchedConn{Conn: c, listener: l, dead: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[w] = struct{}{}
	l.open.Add(1)
	return w, nil
}

// connContext is the ConnContext of an http.Server. Its context ends with the connection, which
// net/http no longer detects after a hijack.
func (l *watchedListener) connContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	w, ok := c.(*watchedConn)
	if !ok {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		w.awaitDeath()
		cancel()
	}()
	return ctx
}

// closeConns waits until all connections are closed, and after grace closes the rest. The listener
// must be closed before.
func (l *watchedListener) closeConns(grace time.Duration) {
	closed := make(chan struct{})
	go func() {
		l.open.Wait()
		close(closed)
	}()
	select {
	case <-closed:
		return
	case <-time.After(grace):
	}
	l.mu.Lock()
	left := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
}

// watchedConn detects by a failed read that its peer is gone. While nothing reads, because the input of
// a session is full, it asks the kernel.
type watchedConn struct {
	net.Conn
	listener *watchedListener
	reads    atomic.Int64
	dead     chan struct{}
	once     sync.Once
}

const (
	// probeInterval is the time between looks at clients that are not read from.
	probeInterval = 15 * time.Second
	// goneProbes is how many looks in a row must find a client gone and not read from. A session has
	// this time to take the rest of its input.
	goneProbes = 4
)

// awaitDeath returns when the peer is gone or the connection is closed.
func (c *watchedConn) awaitDeath() {
	ticker := time.NewTicker(time.Duration(c.listener.probe.Load()))
	defer ticker.Stop()
	for gone, reads := 0, int64(-1); ; {
		select {
		case <-c.dead:
			return
		case <-ticker.C:
		}
		now := c.reads.Load()
		if now != reads || !c.peerGone() {
			gone, reads = 0, now
			continue
		}
		if gone++; gone >= goneProbes {
			_ = c.Close() // which ends blocked writes, too
			return
		}
	}
}

// TCP states in which the peer sends no more, of the kernel's net/tcp_states.h.
const (
	tcpTimeWait = 6 + iota
	tcpClose
	tcpCloseWait
	tcpLastAck
)

// peerGone reports whether the peer has closed or reset the connection.
func (c *watchedConn) peerGone() bool {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true // closed
	}
	gone := true
	if err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err != nil || info.State >= tcpTimeWait && info.State <= tcpLastAck
	}); err != nil {
		return true
	}
	return gone
}

// Read implements net.Conn.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.reads.Add(1)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.die()
	}
	return n, err
}

// CloseWrite shuts down the write side.
func (c *watchedConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// Close implements net.Conn.
func (c *watchedConn) Close() error {
	c.die()
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.conns[c]; open {
		delete(l.conns, c)
		l.open.Done()
	}
	return c.Conn.Close()
}

func (c *watchedConn) die() { c.once.Do(func() { close(c.dead) }) }
