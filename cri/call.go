package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/sent"
)

// The klog verbosity of successful calls. call.end sets the rules for failed ones.
const (
	verbosityChange = 2 // calls that change state
	verbosityRead   = 4 // calls that read, some of which the kubelet makes every second
)

// call is one RPC in progress.
type call struct {
	server    *Server
	log       klog.Logger
	method    string // without the service's name
	streaming bool
	started   time.Time
}

func (s *Server) begin(fullMethod string, streaming bool, req any) *call {
	c := &call{server: s, method: path.Base(fullMethod), streaming: streaming, started: time.Now()}
	c.log = s.log.WithValues("method", c.method, "call", s.lastID.Add(1)).WithValues(identify(req)...)
	s.metrics.running.WithLabelValues(c.method).Inc()
	return c
}

// end converts the handler's error or panic to the error that the client gets, and updates metrics
// and log.
func (c *call) end(err error, panicked any) error {
	if panicked != nil {
		err = c.server.recovered(c.log, panicked)
	}
	err = toStatus(err)
	took := time.Since(c.started)
	c.server.metrics.running.WithLabelValues(c.method).Dec()
	c.server.metrics.observe(c, took, err)
	verbosity := verbosityChange
	if c.reads() {
		verbosity = verbosityRead
	}
	switch status.Code(err) {
	case codes.OK:
		c.log.V(verbosity).Info("Call done", "took", took)
	case codes.NotFound, codes.Canceled, codes.Unimplemented:
		// Expected in normal operation: the object does not exist, or the client went away.
		c.log.V(verbosity).Info("Call refused", "took", took, "err", err)
	default:
		c.log.Error(err, "Call failed", "took", took)
	}
	return err
}

// reads reports whether the call only reads.
func (c *call) reads() bool {
	switch c.method {
	case "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox",
		"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
		"UpdateContainerResources", "UpdatePodSandboxResources", "UpdateRuntimeConfig",
		"CheckpointContainer", "CheckpointPod", "RestorePod", "ReopenContainerLog",
		"Exec", "Attach", "PortForward", "PullImage", "RemoveImage":
		return false
	}
	return true
}

// unary is the interceptor of unary calls.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	c := s.begin(info.FullMethod, false, req)
	ctx, watched := sent.Watch(ctx)
	defer func() {
		err = c.end(err, recover())
		answer = track(answer, err, watched)
	}()
	if s.opts.Incoming != nil {
		ctx = s.opts.Incoming(ctx)
	}
	if err := s.limits.violation(req); err != nil {
		return nil, err
	}
	answer, err = handle(klog.NewContext(ctx, c.log), req)
	if err == nil {
		err = s.checkSize(c.method, answer)
	}
	return answer, err
}

// track returns what gRPC sends of an answer: nothing after an error, and an answer whose handler
// waits for it in the form that reports when it is sent.
func track(answer any, err error, watched *sent.Answer) any {
	message, ok := answer.(proto.Message)
	if err == nil && ok && watched.Awaited() {
		return &tracked{message, watched}
	}
	watched.Sent()
	if err != nil {
		return nil
	}
	return answer
}

// checkSize rejects a list that exceeds the message limit. gRPC would reject it too, with an error
// that does not say what to do.
func (s *Server) checkSize(method string, answer any) error {
	stream, list := streamOf(method)
	message, ok := answer.(proto.Message)
	if !list || !ok {
		return nil
	}
	if size := proto.Size(message); size > s.opts.MaxMessageBytes {
		return status.Errorf(codes.ResourceExhausted, "%s: the list has %d bytes, and a message at most %d: use %s, or a filter",
			method, size, s.opts.MaxMessageBytes, stream)
	}
	return nil
}

// streamOf returns the streaming call that returns the same list as method.
func streamOf(method string) (string, bool) {
	stream, ok := map[string]string{
		"ListPodSandbox":        "StreamPodSandboxes",
		"ListContainers":        "StreamContainers",
		"ListContainerStats":    "StreamContainerStats",
		"ListPodSandboxStats":   "StreamPodSandboxStats",
		"ListPodSandboxMetrics": "StreamPodSandboxMetrics",
		"ListImages":            "StreamImages",
	}[method]
	return stream, ok
}

// stream is the interceptor of streaming calls.
func (s *Server) stream(srv any, inner grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	c := s.begin(info.FullMethod, true, nil)
	ctx, cancel := s.untilStop(klog.NewContext(inner.Context(), c.log))
	defer cancel()
	defer func() { err = c.end(err, recover()) }()
	err = handle(srv, &serverStream{ServerStream: inner, ctx: ctx, limits: s.limits})
	if cause := context.Cause(ctx); err != nil && cause != nil && inner.Context().Err() == nil {
		return cause
	}
	return err
}

// serverStream is a gRPC stream with another context. It stores a context in a struct because
// grpc.ServerStream returns it from a method.
type serverStream struct {
	grpc.ServerStream
	ctx    context.Context
	limits *limits
}

// RecvMsg implements grpc.ServerStream.
func (s *serverStream) RecvMsg(request any) error {
	if err := s.ServerStream.RecvMsg(request); err != nil {
		return err
	}
	return s.limits.violation(request)
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// untilStop returns a context that also ends when the server begins to stop; its cause is then
// errStopping.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-s.stopping:
			cancel(errStopping())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func errStopping() error { return status.Error(codes.Unavailable, "the runtime is stopping") }

// recovered logs a panic with its stack and returns the error for the client. It must be called by
// the deferred function that recovered.
func (s *Server) recovered(log klog.Logger, panicked any) error {
	s.metrics.panics.Inc()
	log.Error(nil, "Panic", "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "panic: %v", panicked)
}
