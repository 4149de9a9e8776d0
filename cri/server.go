package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/unixsock"
)

const (
	socketMode = 0o660
	// minClientPing is the minimum interval of a client's keepalive pings, with or without calls.
	minClientPing = 5 * time.Second
)

// Server is a listening CRI endpoint. Its methods may be called concurrently.
type Server struct {
	opts    Options
	log     klog.Logger
	socket  *unixsock.Listener
	grpc    *grpc.Server
	streams *streamServer
	metrics *metrics
	limits  *limits
	lastID  atomic.Uint64

	// stopping is closed when the server begins to stop, which ends the contexts of
	// streaming calls.
	stopping chan struct{}
	stopOnce sync.Once
}

// endpoint is the registered RuntimeService: the Runtime, except that this package answers Exec,
// Attach and PortForward.
type endpoint struct {
	Runtime
	streams *streamServer
}

// New binds the socket and the streaming address. Clients may connect from now on; calls are
// answered once Serve runs. Each call's logger derives from the logger of ctx. The error is
// errdefs.ErrAlreadyExists if another process listens on the socket, and errdefs.ErrInvalidArgument
// for invalid options. A Server that is never served must be closed.
func New(ctx context.Context, opts Options, rt Runtime, images runtimeapi.ImageServiceServer) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, invalidArgument(err)
	}
	s := &Server{
		opts:     opts.withDefaults(),
		log:      klog.FromContext(ctx),
		metrics:  newMetrics(),
		limits:   newLimits(),
		stopping: make(chan struct{}),
	}
	var err error
	if s.streams, err = newStreamServer(s, rt); err != nil {
		return nil, err
	}
	s.socket, err = unixsock.Listen(ctx, unixsock.Args{Path: opts.Socket, Mode: socketMode, Group: opts.Group})
	if err != nil {
		return nil, errors.Join(err, s.streams.close())
	}
	s.grpc = s.newGRPC(&endpoint{Runtime: rt, streams: s.streams}, images)
	return s, nil
}

func (s *Server) newGRPC(rt runtimeapi.RuntimeServiceServer, images runtimeapi.ImageServiceServer) *grpc.Server {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(min(s.opts.MaxMessageBytes, maxRequestBytes)),
		grpc.ForceServerCodecV2(s.limits),
		grpc.MaxSendMsgSize(s.opts.MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	runtimeapi.RegisterRuntimeServiceServer(srv, rt)
	runtimeapi.RegisterImageServiceServer(srv, images)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	return srv
}

// Collector returns the endpoint's metrics, all named mica_cri_*.
func (s *Server) Collector() prometheus.Collector { return s.metrics }

// StreamAddress returns the address that the streaming server listens on.
func (s *Server) StreamAddress() net.Addr { return s.streams.listener.Addr() }

// Serve answers calls until ctx ends. Then it accepts no new calls, gives calls in progress
// Options.StopTimeout, and ends event streams and sessions at once. It returns nil after such a
// stop, and otherwise why serving ended.
func (s *Server) Serve(ctx context.Context) error {
	ended := make(chan error, 2)
	go func() { ended <- wrap("serve CRI calls", s.grpc.Serve(s.socket)) }()
	go func() { ended <- wrap("serve CRI streams", s.streams.serve()) }()
	var err error
	running := 2
	select {
	case <-ctx.Done():
	case err = <-ended:
		running--
	}
	s.stop()
	for range running {
		err = errors.Join(err, <-ended)
	}
	return err
}

// Close stops at once and aborts calls in progress. It is idempotent. A running Serve returns.
func (s *Server) Close() error {
	s.stopOnce.Do(func() { close(s.stopping) })
	s.grpc.Stop()
	return errors.Join(s.socket.Close(), s.streams.close())
}

// stop stops the server in bounded time, even if a handler ignores its context: then a goroutine
// remains, in a process that is about to exit.
func (s *Server) stop() {
	s.stopOnce.Do(func() { close(s.stopping) })
	graceful := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(graceful)
	}()
	select {
	case <-graceful:
	case <-time.After(s.opts.StopTimeout):
		s.log.Info("Aborting calls that still run after the stop timeout", "timeout", s.opts.StopTimeout)
	}
	if err := s.Close(); err != nil {
		s.log.Error(err, "Closing the CRI endpoint failed")
	}
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
