package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/state"
)

// crowd is the number of pods, each with one container, in tests of streams. crowdLabel is the
// number of bytes of labels that each pod and container has.
const (
	crowd      = 2000
	crowdLabel = 16 << 10
)

// slowMeasurement stands for the measurement of a writable layer. It is so slow that its result is
// reused for a minute, longer than the streams need.
func slowMeasurement(context.Context) (overlay.Usage, error) {
	time.Sleep(3 * time.Second)
	return overlay.Usage{}, nil
}

// addCrowd adds the pods and their containers. Each container has a memory cgroup and a measured
// writable layer, and nothing else that could be measured.
func (m *measured) addCrowd() {
	m.t.Helper()
	_, err := m.cgroups.EnsureParent(m.t.Context(), m.parent)
	m.no(err)
	labels := map[string]string{"large": strings.Repeat("x", crowdLabel)}
	root := m.t.TempDir()
	var measuring sync.WaitGroup
	defer measuring.Wait()
	for i := range crowd {
		of := state.PodRecord{ID: newID(), Created: time.Now()}
		of.CgroupParent, err = m.cgroups.PodParent("", of.ID)
		m.no(err)
		of.Config.Msg = &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint(i)}, Labels: labels,
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			}},
		}
		p := recordedPod(m.t, root, of, state.PodState{Phase: state.PodReady})
		rec := state.ContainerRecord{ID: newID(), PodID: p.ID(), Created: time.Now(), CgroupParent: p.CgroupParent()}
		rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint(i)}, Labels: labels}
		c := recordedContainer(m.t, root, rec, state.ContainerState{Ready: true, Started: time.Now()})
		measuring.Go(func() { _, _ = c.usage.Layer(m.t.Context(), slowMeasurement) })
		m.no(m.pods.Add(p))
		m.no(m.containers.Add(c))
		m.no(os.MkdirAll(m.cgroups.MemoryDir(m.containerCgroup(c)), 0o755))
	}
}

// serve serves the service on a socket and returns a client with gRPC's default message size.
func (m *measured) serve() runtimeapi.RuntimeServiceClient {
	m.t.Helper()
	listener, err := net.Listen("unix", filepath.Join(m.t.TempDir(), "cri.sock"))
	m.no(err)
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, m.Service)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	m.no(err)
	m.t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		m.no(<-done)
	})
	return runtimeapi.NewRuntimeServiceClient(conn)
}

// ids reads a stream to its end and returns the IDs of its items, message by message.
func ids[M any](next func() (M, error), of func(M) []string) ([][]string, error) {
	var messages [][]string
	for {
		msg, err := next()
		if errors.Is(err, io.EOF) {
			return messages, nil
		}
		if err != nil {
			return nil, err
		}
		messages = append(messages, of(msg))
	}
}

func each[T any](items []T, id func(T) string) []string {
	out := make([]string, len(items))
	for i, item := range items {
		out[i] = id(item)
	}
	return out
}

// streamedLists returns the streaming lists, each read to its end.
func streamedLists(ctx context.Context, client runtimeapi.RuntimeServiceClient) map[string]func() ([][]string, error) {
	return map[string]func() ([][]string, error){
		"StreamContainers": func() ([][]string, error) {
			s, err := client.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
			if err != nil {
				return nil, err
			}
			return ids(s.Recv, func(m *runtimeapi.StreamContainersResponse) []string {
				return each(m.GetContainers(), (*runtimeapi.Container).GetId)
			})
		},
		"StreamPodSandboxes": func() ([][]string, error) {
			s, err := client.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
			if err != nil {
				return nil, err
			}
			return ids(s.Recv, func(m *runtimeapi.StreamPodSandboxesResponse) []string {
				return each(m.GetPodSandboxes(), (*runtimeapi.PodSandbox).GetId)
			})
		},
		"StreamContainerStats": func() ([][]string, error) {
			s, err := client.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
			if err != nil {
				return nil, err
			}
			return ids(s.Recv, func(m *runtimeapi.StreamContainerStatsResponse) []string {
				return each(m.GetContainerStats(), func(c *runtimeapi.ContainerStats) string { return c.GetAttributes().GetId() })
			})
		},
		"StreamPodSandboxStats": func() ([][]string, error) {
			s, err := client.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
			if err != nil {
				return nil, err
			}
			return ids(s.Recv, func(m *runtimeapi.StreamPodSandboxStatsResponse) []string {
				return each(m.GetPodSandboxStats(), func(p *runtimeapi.PodSandboxStats) string { return p.GetAttributes().GetId() })
			})
		},
		"StreamPodSandboxMetrics": func() ([][]string, error) {
			s, err := client.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
			if err != nil {
				return nil, err
			}
			return ids(s.Recv, func(m *runtimeapi.StreamPodSandboxMetricsResponse) []string {
				return each(m.GetPodSandboxMetrics(), (*runtimeapi.PodSandboxMetrics).GetPodSandboxId)
			})
		},
	}
}

// Every streaming list sends each of 2,000 pods or containers with 16 KiB of labels once and then
// ends, in messages that a client with default settings accepts.
func TestStreamsOfACrowd(t *testing.T) {
	m := newMeasured(t)
	m.addCrowd()
	client := m.serve()
	for name, read := range streamedLists(t.Context(), client) {
		t.Run(name, func(t *testing.T) {
			messages, err := read()
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, items := range messages {
				for _, id := range items {
					if seen[id] {
						t.Errorf("%s was sent twice", id)
					}
					seen[id] = true
				}
			}
			if len(seen) != crowd {
				t.Errorf("%d items were sent, want %d", len(seen), crowd)
			}
			if len(messages) < crowd*crowdLabel/(1<<20) {
				t.Errorf("%d items were sent in %d messages", len(seen), len(messages))
			}
		})
	}
}

// A stream without items ends at once.
func TestStreamsOfNothing(t *testing.T) {
	m := newMeasured(t)
	client := m.serve()
	for name, read := range streamedLists(t.Context(), client) {
		if messages, err := read(); err != nil || len(messages) != 0 {
			t.Errorf("%s: %v, %v", name, messages, err)
		}
	}
}
