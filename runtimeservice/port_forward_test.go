package runtimeservice

import (
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testtcp"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/state"
)

// halfCloser is the server's end of a client's stream: Close ends only its own direction.
type halfCloser struct{ *net.TCPConn }

func (h halfCloser) Close() error { return h.CloseWrite() }

func forwardingService(t *testing.T, p *Pod) *Service {
	t.Helper()
	opts := Options{StateDir: t.TempDir()}.withDefaults()
	s := &Service{inventory: newInventory(opts.paths(), nil), opts: opts}
	if err := s.pods.Add(p); err != nil {
		t.Fatal(err)
	}
	return s
}

func testPod(t *testing.T, phase state.PodPhase, net runtimeapi.NamespaceMode) *Pod {
	t.Helper()
	rec := state.PodRecord{ID: "podforwarded", Created: time.Now()}
	rec.Config.Msg = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: net},
		}},
	}
	return recordedPod(t, t.TempDir(), rec, state.PodState{Phase: phase})
}

func TestPortForwardIsRefused(t *testing.T) {
	ready := forwardingService(t, testPod(t, state.PodReady, runtimeapi.NamespaceMode_NODE))
	ended := forwardingService(t, testPod(t, state.PodNotReady, runtimeapi.NamespaceMode_NODE))
	client, server := testtcp.Pair(t)
	_ = client.Close()
	tests := map[string]struct {
		s    *Service
		id   string
		port int32
		is   func(error) bool
	}{
		"unknown pod":   {ready, "other", 80, errdefs.IsNotFound},
		"ended pod":     {ended, "podforwarded", 80, errdefs.IsFailedPrecondition},
		"port zero":     {ready, "podforwarded", 0, errdefs.IsInvalidArgument},
		"port too high": {ready, "podforwarded", 65536, errdefs.IsInvalidArgument},
		"nobody there":  {ready, "podforwarded", 1, func(err error) bool { return err != nil && strings.Contains(err.Error(), "refused") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.s.ServePortForward(t.Context(), tt.id, tt.port, server); !tt.is(err) {
				t.Errorf("ServePortForward = %v", err)
			}
		})
	}
	if err := ready.CheckPortForward(t.Context(), "podforwarded"); err != nil {
		t.Errorf("CheckPortForward of a ready pod = %v", err)
	}
	if err := ended.CheckPortForward(t.Context(), "podforwarded"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("CheckPortForward of an ended pod = %v", err)
	}
}

// The port is on the loopback interface of the pod, or of the node for a pod in the host network.
func TestPortForwardReachesThePod(t *testing.T) {
	needRoot(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			p := testPod(t, state.PodReady, mode)
			s := forwardingService(t, p)
			netns := ""
			if mode == runtimeapi.NamespaceMode_POD {
				dir := s.paths.PodState(p.ID())
				if err := podns.Pin(t.Context(), podns.Args{Dir: dir, Net: true}); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := podns.Unpin(dir); err != nil {
						t.Error(err)
					}
				})
				netns = filepath.Join(dir, podns.Net)
			}
			port := serveOnce(t, netns)
			client, server := testtcp.Pair(t)
			done := make(chan error, 1)
			go func() { done <- s.ServePortForward(t.Context(), p.ID(), port, halfCloser{server}) }()
			if _, err := io.WriteString(client, "ping"); err != nil {
				t.Fatal(err)
			}
			_ = client.CloseWrite()
			_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
			if got, err := io.ReadAll(client); err != nil || string(got) != "ping" {
				t.Errorf("received %q, %v, want the echo", got, err)
			}
			if err := <-done; err != nil {
				t.Errorf("ServePortForward = %v", err)
			}
		})
	}
}

// serveOnce echoes one connection in the network namespace and returns the port.
func serveOnce(t *testing.T, netns string) int32 {
	t.Helper()
	var l net.Listener
	err := podns.Do(netns, func() error {
		var err error
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}
