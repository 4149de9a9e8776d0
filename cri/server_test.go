package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criapierrors "k8s.io/cri-api/pkg/errors"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

// lockedBuffer is a log that goroutines may write concurrently.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// env is a running server with what tests need to call it.
type env struct {
	t       *testing.T
	server  *Server
	runtime *fakeRuntime
	images  *fakeImages
	socket  string
	log     *lockedBuffer
	stop    func() // ends Serve and waits for it; idempotent
}

func start(t *testing.T, change func(*Options)) *env {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri-") //nolint:usetesting // t.TempDir contains the test's name, with characters that URLs do not allow
	if err != nil {
		t.Fatal(err)
	}
	leaks := []goleak.Option{
		goleak.IgnoreCurrent(),
		// The client detects the end of its connection only at the next ping.
		goleak.IgnoreAnyFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"),
		// client-go sends an error without a receiver when a forwarding is stopped midway.
		goleak.IgnoreAnyFunction("k8s.io/client-go/tools/portforward.(*PortForwarder).handleConnection.func1"),
	}
	e := &env{t: t, runtime: &fakeRuntime{t: t}, images: &fakeImages{}, socket: filepath.Join(dir, "s"), log: &lockedBuffer{}}
	opts := Options{Socket: e.socket}
	if change != nil {
		change(&opts)
	}
	log := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(e.log), textlogger.Verbosity(4)))
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), log))
	if e.server, err = New(ctx, opts, e.runtime, e.images); err != nil {
		cancel()
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(wait()):
			t.Error("Serve did not return")
		}
	})
	t.Cleanup(func() {
		e.stop()
		if _, err := os.Lstat(e.socket); err == nil {
			t.Error("the socket is still there")
		}
		_ = os.RemoveAll(dir)
		// spdystream takes up to a second to release a failed connection.
		for deadline := time.Now().Add(wait()); ; {
			err := goleak.Find(leaks...)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	return e
}

// client returns the kubelet's own client.
func (e *env) client() internalapi.RuntimeService {
	e.t.Helper()
	c, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + e.socket).
		WithConnectionTimeout(wait()).Build(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func (e *env) conn() *grpc.ClientConn {
	e.t.Helper()
	conn, err := grpc.NewClient("unix://"+e.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestKubeletsClientConnects(t *testing.T) {
	e := start(t, nil)
	v, err := e.client().Version(t.Context(), "v1")
	if err != nil || v.GetRuntimeName() != "fake" {
		t.Errorf("got %v, %v", v, err)
	}
	info, err := os.Stat(e.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	answer, err := healthpb.NewHealthClient(e.conn()).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", answer, err)
	}
}

func TestLargeMessages(t *testing.T) {
	e := start(t, nil)
	label := map[string]string{"x": strings.Repeat("y", 16<<10)}
	var list []*runtimeapi.Container
	for i := range 1500 { // 24 MiB
		list = append(list, &runtimeapi.Container{Id: fmt.Sprint(i), Labels: label})
	}
	e.runtime.list = func(context.Context) ([]*runtimeapi.Container, error) { return list, nil }
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	got, err := client.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(got.GetContainers()) != len(list) {
		t.Errorf("list: %d containers, %v", len(got.GetContainers()), err)
	}
}

// A list that exceeds the message limit is rejected with an error that names the streaming call.
// That call returns the list in several messages.
func TestListThatDoesNotFit(t *testing.T) {
	e := start(t, func(o *Options) { o.MaxMessageBytes = 1 << 20 })
	var list []*runtimeapi.Container
	for i := range 100 { // 1.6 MiB
		list = append(list, &runtimeapi.Container{Id: fmt.Sprint(i), Labels: map[string]string{"x": strings.Repeat("y", 16<<10)}})
	}
	e.runtime.list = func(context.Context) ([]*runtimeapi.Container, error) { return list, nil }
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	_, err := client.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "use StreamContainers") {
		t.Errorf("list of 1.6 MiB in messages of 1 MiB: %v", err)
	}
	list = list[:50]
	got, err := client.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(got.GetContainers()) != len(list) {
		t.Errorf("list of 0.8 MiB: %d containers, %v", len(got.GetContainers()), err)
	}
	for _, stream := range runtimeapi.RuntimeService_ServiceDesc.Streams {
		known := slices.ContainsFunc(runtimeapi.RuntimeService_ServiceDesc.Methods, func(m grpc.MethodDesc) bool {
			name, ok := streamOf(m.MethodName)
			return ok && name == stream.StreamName
		})
		if !known && stream.StreamName != "GetContainerEvents" {
			t.Errorf("%s is no list's", stream.StreamName)
		}
	}
}

func TestPanicEndsOnlyItsCall(t *testing.T) {
	e := start(t, nil)
	e.runtime.version = func(_ context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
		if r.GetVersion() == "panic" {
			return nil, e.images.none[len(r.GetVersion())]
		}
		return &runtimeapi.VersionResponse{Version: "fine"}, nil
	}
	e.runtime.events = func(runtimeapi.RuntimeService_GetContainerEventsServer) error { panic("in a stream") }
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	if _, err := client.Version(t.Context(), &runtimeapi.VersionRequest{Version: "panic"}); status.Code(err) != codes.Internal {
		t.Errorf("unary: %v", err)
	}
	stream, err := client.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("stream: %v", err)
	}
	if v, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.GetVersion() != "fine" {
		t.Errorf("after the panics: %v, %v", v, err)
	}
	for _, want := range []string{"fakeRuntime).Version", "index out of range", "in a stream", "server_test.go:"} {
		if !strings.Contains(e.log.String(), want) {
			t.Errorf("the log does not show %q:\n%s", want, e.log)
		}
	}
	if n := metric(t, e, "mica_cri_panics_total"); n != 2 {
		t.Errorf("mica_cri_panics_total = %v", n)
	}
}

func TestErrorsBecomeCodesOnBothKindsOfCalls(t *testing.T) {
	e := start(t, nil)
	e.runtime.list = func(context.Context) ([]*runtimeapi.Container, error) {
		return []*runtimeapi.Container{{}}, fmt.Errorf("list containers: %w", errdefs.ErrUnavailable)
	}
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	if _, err := client.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("unary: %v", err)
	}
	stream, err := client.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream: %v", err)
	}
}

// The kubelet recognises an unavailable registry by the beginning of the message.
func TestRegistryUnavailableAsTheKubeletSeesIt(t *testing.T) {
	e := start(t, nil)
	e.images.pull = func(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
		return nil, fmt.Errorf("pull image %q: %w: %w", "x", criapierrors.ErrRegistryUnavailable, errdefs.ErrNotFound)
	}
	images, err := remote.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + e.socket).
		WithConnectionTimeout(wait()).Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close(context.Background()) })
	_, err = images.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: "x"}, nil, nil)
	if err == nil || !strings.HasPrefix(err.Error(), criapierrors.ErrRegistryUnavailable.Error()+": ") {
		t.Errorf("got %v", err)
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	e := start(t, nil)
	e.images.pull = func(ctx context.Context, _ *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
		klog.FromContext(ctx).Info("pulling")
		return nil, errors.New("some failure")
	}
	_, err := runtimeapi.NewImageServiceClient(e.conn()).PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "busybox"},
		Auth:  &runtimeapi.AuthConfig{Username: "me", Password: "S3CRET", Auth: "S3CRET", RegistryToken: "S3CRET", IdentityToken: "S3CRET"},
	})
	if err == nil {
		t.Error("the pull succeeded")
	}
	log := e.log.String()
	if strings.Contains(log, "S3CRET") {
		t.Errorf("a credential is in the log:\n%s", log)
	}
	for _, want := range []string{`"pulling" method="PullImage" call=1 image="busybox"`, `"Call failed"`, "some failure"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not show %s:\n%s", want, log)
		}
	}
}

func TestStopWaitsForCalls(t *testing.T) {
	e := start(t, nil)
	running, release := make(chan struct{}), make(chan struct{})
	e.runtime.version = func(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
		close(running)
		<-release
		return &runtimeapi.VersionResponse{Version: "done"}, nil
	}
	answer := make(chan error, 1)
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	go func() {
		v, err := client.Version(context.Background(), &runtimeapi.VersionRequest{})
		if err == nil && v.GetVersion() != "done" {
			err = errors.New(v.GetVersion())
		}
		answer <- err
	}()
	<-running
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	e.stop()
	if err := <-answer; err != nil {
		t.Errorf("the call in progress: %v", err)
	}
}

func TestStopCutsCallsThatGoOn(t *testing.T) {
	e := start(t, func(o *Options) { o.StopTimeout = 50 * time.Millisecond })
	running := make(chan struct{})
	e.runtime.version = func(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
		close(running)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	answer := make(chan error, 1)
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	go func() {
		_, err := client.Version(context.Background(), &runtimeapi.VersionRequest{})
		answer <- err
	}()
	<-running
	e.stop()
	if err := <-answer; status.Code(err) != codes.Unavailable {
		t.Errorf("the call that was cut: %v", err)
	}
}

func TestStopEndsEventStreamsAtOnce(t *testing.T) {
	e := start(t, func(o *Options) { o.StopTimeout = time.Hour })
	e.runtime.events = func(s runtimeapi.RuntimeService_GetContainerEventsServer) error {
		if err := s.Send(&runtimeapi.ContainerEventResponse{ContainerId: "c"}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}
	stream, err := runtimeapi.NewRuntimeServiceClient(e.conn()).GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	e.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	e := start(t, nil)
	_, err := New(t.Context(), Options{Socket: e.socket}, e.runtime, e.images)
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	if _, err := e.client().Version(t.Context(), "v1"); err != nil {
		t.Errorf("the first server: %v", err)
	}
}

func TestOptionsAreValidated(t *testing.T) {
	_, err := New(t.Context(), Options{Socket: "relative", Streaming: StreamingOptions{Address: "nowhere"}}, &fakeRuntime{}, &fakeImages{})
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{`socket: "relative"`, `streaming.address: "nowhere"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestMetricsCountCalls(t *testing.T) {
	e := start(t, nil)
	client := runtimeapi.NewRuntimeServiceClient(e.conn())
	for range 3 {
		if _, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = client.Status(t.Context(), &runtimeapi.StatusRequest{})
	if n := metric(t, e, "mica_cri_calls_total", "method", "Version", "code", "OK"); n != 3 {
		t.Errorf("Version OK: %v", n)
	}
	if n := metric(t, e, "mica_cri_calls_total", "method", "Status", "code", "Unimplemented"); n != 1 {
		t.Errorf("Status Unimplemented: %v", n)
	}
	if n := metric(t, e, "mica_cri_call_duration_seconds", "method", "Version"); n != 3 {
		t.Errorf("observed durations: %v", n)
	}
	if n := metric(t, e, "mica_cri_calls_running", "method", "Version"); n != 0 {
		t.Errorf("running: %v", n)
	}
}

// metric returns a metric's value (a histogram's count), chosen by label pairs; -1
// if there is none.
func metric(t *testing.T, e *env, name string, labels ...string) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(e.server.Collector())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			matches := true
			for i := 0; i+1 < len(labels); i += 2 {
				matches = matches && got[labels[i]] == labels[i+1]
			}
			if matches {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return -1
}
