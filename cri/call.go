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
)

// The verbosity of klog at which calls are logged when they end well. Failed
// calls are logged at any verbosity, by the rules of call.end.
const (
	verbosityChange = 2 // calls that change something
	verbosityRead   = 4 // calls that kubelet makes every second
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

// end turns what the handler returned or panicked with into the call's answer,
// and accounts for it.
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
		// The client asked for what is not there, or left: nothing is wrong here.
		c.log.V(verbosity).Info("Call refused", "took", took, "err", err)
	default:
		c.log.Error(err, "Call failed", "took", took)
	}
	return err
}

// reads tells whether the call belongs to those that change nothing and come often.
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

// unary is the interceptor of calls with one answer.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	c := s.begin(info.FullMethod, false, req)
	defer func() {
		if err = c.end(err, recover()); err != nil {
			answer = nil
		}
	}()
	if s.opts.Incoming != nil {
		ctx = s.opts.Incoming(ctx)
	}
	answer, err = handle(klog.NewContext(ctx, c.log), req)
	if err == nil {
		err = s.checkSize(c.method, answer)
	}
	return answer, err
}

// checkSize refuses a list that does not fit into a message, before gRPC does it
// in words that help nobody.
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

// streamOf returns the call that gives the list of the named one in many messages.
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

// stream is the interceptor of calls with many answers.
func (s *Server) stream(srv any, inner grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	c := s.begin(info.FullMethod, true, nil)
	ctx, cancel := s.untilStop(klog.NewContext(inner.Context(), c.log))
	defer cancel()
	defer func() { err = c.end(err, recover()) }()
	err = handle(srv, &serverStream{ServerStream: inner, ctx: ctx})
	if cause := context.Cause(ctx); err != nil && cause != nil && inner.Context().Err() == nil {
		return cause
	}
	return err
}

// serverStream is a gRPC stream with another context. This is the one place that
// keeps a context in a struct, because grpc.ServerStream hands it out by a method.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// untilStop returns a context that also ends, with errStopping as its cause, when
// the server begins to stop.
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

// recovered logs a panic with its stack and returns the error to answer with. It
// must be called by the deferred function that recovered.
func (s *Server) recovered(log klog.Logger, panicked any) error {
	s.metrics.panics.Inc()
	log.Error(nil, "Panic", "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "panic: %v", panicked)
}
