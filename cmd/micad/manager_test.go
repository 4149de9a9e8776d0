package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stuckService answers every call except the one named by stuck.
type stuckService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	stuck string
}

func (s stuckService) hang(ctx context.Context, call string) error {
	if s.stuck != call {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s stuckService) ListPodSandbox(ctx context.Context, _ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{}, s.hang(ctx, "pods")
}

func (s stuckService) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{}, s.hang(ctx, "containers")
}

func (s stuckService) ImageStatus(ctx context.Context, _ *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return &runtimeapi.ImageStatusResponse{}, s.hang(ctx, "images")
}

// A daemon that answers health checks but hangs in lookups does not feed the watchdog.
func TestWatchdogDetectsHang(t *testing.T) {
	for _, stuck := range []string{"", "pods", "containers", "images"} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		service := stuckService{stuck: stuck}
		runtimeapi.RegisterRuntimeServiceServer(server, service)
		runtimeapi.RegisterImageServiceServer(server, service)
		healthpb.RegisterHealthServer(server, health.NewServer())
		go func() { _ = server.Serve(l) }()
		conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		timeout := 30 * time.Second
		if stuck != "" {
			timeout = 200 * time.Millisecond // which must pass
		}
		if err := works(t.Context(), conn, timeout); (err != nil) != (stuck != "") {
			t.Errorf("with stuck %q: %v", stuck, err)
		}
		_ = conn.Close()
		server.Stop()
	}
}
