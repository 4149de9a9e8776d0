package main

import (
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/micarun/mica/internal/operations"
)

// clearTracing removes the tracing variables from the test's environment.
func clearTracing(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SERVICE_NAME",
	} {
		t.Setenv(name, "")
	}
}

func TestTracesWanted(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, tc := range map[string]struct {
		env  map[string]string
		want bool
	}{
		"nothing":       {nil, false},
		"endpoint":      {map[string]string{endpoint: "http://127.0.0.1:4318"}, true},
		"of traces":     {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, true},
		"disabled":      {map[string]string{endpoint: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, false},
		"none":          {map[string]string{endpoint: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, false},
		"otlp":          {map[string]string{endpoint: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "otlp"}, true},
		"otlp, nowhere": {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			clearTracing(t)
			for key, value := range tc.env {
				t.Setenv(key, value)
			}
			if got := tracesWanted(); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestUnknownProtocolIsRefused(t *testing.T) {
	clearTracing(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke")
	if _, err := startTracing(t.Context()); err == nil {
		t.Error("no error")
	}
}

// received collects the spans sent to a collector, by name, and the service's name.
type received struct {
	spans   map[string]*tracepb.Span
	service string
}

func collect(t *testing.T) *received {
	t.Helper()
	got := &received{spans: map[string]*tracepb.Span{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collector.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &request)); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		for _, from := range request.GetResourceSpans() {
			for _, a := range from.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					got.service = a.GetValue().GetStringValue()
				}
			}
			for _, scope := range from.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					got.spans[span.GetName()] = span
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	clearTracing(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	return got
}

// An operation is a span of its caller's trace. Its stages are child spans, and the failed one is
// marked.
func TestSpansOfAnOperation(t *testing.T) {
	got := collect(t)
	tr, err := startTracing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	md := metadata.Pairs("traceparent", "00-"+traceID+"-"+parent+"-01")
	ctx := incoming(metadata.NewIncomingContext(t.Context(), md))
	ctx, op := operations.New(tr).Begin(ctx, "run pod", operations.Subject{Pod: "p1", Name: "shop/web"})
	operations.Enter(ctx, "make cgroup")
	operations.Enter(ctx, "set up network")
	op.End(errors.New("set up network: no"))
	if err := tr.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	run, network, cgroup := got.spans["run pod"], got.spans["set up network"], got.spans["make cgroup"]
	if run == nil || network == nil || cgroup == nil || got.service != "micad" {
		t.Fatalf("received %v of %q", got.spans, got.service)
	}
	if hex.EncodeToString(run.GetTraceId()) != traceID || hex.EncodeToString(run.GetParentSpanId()) != parent {
		t.Errorf("run pod is not in its caller's trace: %v", run)
	}
	for _, stage := range []*tracepb.Span{network, cgroup} {
		if string(stage.GetParentSpanId()) != string(run.GetSpanId()) || stage.GetStartTimeUnixNano() < run.GetStartTimeUnixNano() || stage.GetEndTimeUnixNano() > run.GetEndTimeUnixNano() {
			t.Errorf("stage is not within its operation: %v", stage)
		}
	}
	if run.GetStatus().GetMessage() != "set up network: no" || network.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR || cgroup.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("status: %v, %v, %v", run.GetStatus(), network.GetStatus(), cgroup.GetStatus())
	}
}

// An unreachable collector does not delay the shutdown.
func TestAbsentCollector(t *testing.T) {
	clearTracing(t)
	tr, err := startTracing(t.Context())
	if tr != nil || err != nil {
		t.Fatalf("tracing is enabled by default: %v, %v", tr, err)
	}
	if err := tr.close(t.Context()); err != nil {
		t.Error(err)
	}
}
