package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/internal/version"
)

// tracing is an operations.Observer that creates a span for each operation and each of its stages. The
// OTEL_* variables of the OpenTelemetry specification set what it sends, and where.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// startTracing returns nil if the environment does not enable traces: without an endpoint there is
// no receiver.
func startTracing(ctx context.Context) (*tracing, error) {
	if !tracesWanted() {
		return nil, nil
	}
	exporter, err := newExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "micad"), attribute.String("service.version", version.String())),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("start tracing: describe this process: %w", err)
	}
	log := klog.FromContext(ctx)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Error(err, "Sending traces failed") }))
	// The sampler and the limits are read from the environment by the library.
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &tracing{provider: provider, tracer: provider.Tracer("github.com/micarun/mica")}, nil
}

func tracesWanted() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch os.Getenv("OTEL_TRACES_EXPORTER") {
	case "", "otlp":
		return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
	}
	return false
}

// newExporter returns an exporter for the protocol in the environment, by default OTLP over HTTP.
func newExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf":
		return otlptracehttp.New(ctx)
	case "grpc":
		return otlptracegrpc.New(ctx)
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q is not one of \"http/protobuf\", \"grpc\"", protocol)
}

// incoming continues the caller's trace, as in the kubelet's CRI calls.
func incoming(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	return propagation.TraceContext{}.Extract(ctx, carrier(md))
}

// carrier adapts gRPC metadata to propagation.TextMapCarrier.
type carrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}

// Begin implements operations.Observer.
func (t *tracing) Begin(ctx context.Context, what string, _ operations.Subject) context.Context {
	ctx, _ = t.tracer.Start(ctx, what)
	return ctx
}

// End implements operations.Observer.
func (t *tracing) End(ctx context.Context, e operations.Entry) {
	span := trace.SpanFromContext(ctx)
	for key, value := range map[string]string{
		"k8s.pod.id": e.Pod, "container.id": e.Container, "container.image.name": e.Image, "mica.name": e.Name, "mica.detail": e.Detail,
	} {
		if value != "" {
			span.SetAttributes(attribute.String(key, value))
		}
	}
	if e.Err != nil {
		span.SetStatus(codes.Error, e.Err.Error())
	}
	// Spans use wall-clock time, and operation and stage read the clock at different moments. Their
	// common end may differ by nanoseconds, so a stage's end is capped.
	end := e.Started.Add(e.Took).Round(0)
	for i, s := range e.Stages {
		_, stage := t.tracer.Start(ctx, s.Name, trace.WithTimestamp(s.Started))
		if e.Err != nil && i == len(e.Stages)-1 {
			stage.SetStatus(codes.Error, "")
		}
		stageEnd := s.Started.Add(s.Took).Round(0)
		if stageEnd.After(end) {
			stageEnd = end
		}
		stage.End(trace.WithTimestamp(stageEnd))
	}
	span.End(trace.WithTimestamp(end))
}

// close sends the remaining spans, until ctx ends.
func (t *tracing) close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("end tracing: %w", err)
	}
	return nil
}
