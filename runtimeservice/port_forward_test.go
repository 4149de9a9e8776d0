package runtimeservice

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/podns"
)

// clientStream is the server's end of a client's stream, as SPDY has it: Close
// ends one direction, Reset both.
type clientStream struct {
	*net.TCPConn
	resets atomic.Int32
}

func (c *clientStream) Close() error { return c.CloseWrite() }
func (c *clientStream) Reset() error { c.resets.Add(1); return c.TCPConn.Close() }

// tcpPair is both ends of a connection.
func tcpPair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// forwarded is a relay between a client and a pod, both played by the test.
type forwarded struct {
	client, pod *net.TCPConn
	stream      *clientStream
	ended       chan error
	cancel      context.CancelFunc
}

func forward(t *testing.T, r relay) forwarded {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	client, server := tcpPair(t)
	near, pod := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	f := forwarded{client: client, pod: pod, stream: &clientStream{TCPConn: server}, ended: make(chan error, 1), cancel: cancel}
	r.client, r.pod = f.stream, near
	r.probe, r.linger = either(r.probe, time.Hour), either(r.linger, time.Hour)
	go func() { f.ended <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		_ = server.Close() // as the streaming server does with the connection
		goleak.VerifyNone(t, leaks)
	})
	return f
}

func (f forwarded) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-f.ended:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the relay does not end")
		return nil
	}
}

func (f forwarded) send(t *testing.T, to io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

func (f forwarded) receive(t *testing.T, from *net.TCPConn, want string) {
	t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(20 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(from, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v, want %q", got, err, want)
	}
}

func (f forwarded) receiveEnd(t *testing.T, from *net.TCPConn) {
	t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(from); err != nil || len(got) > 0 {
		t.Fatalf("received %q, %v, want the end", got, err)
	}
}

func TestForwardClientEndsFirst(t *testing.T) {
	f := forward(t, relay{probe: time.Millisecond})
	f.send(t, f.client, "question")
	_ = f.client.CloseWrite()
	f.receive(t, f.pod, "question")
	f.receiveEnd(t, f.pod)
	f.send(t, f.pod, "answer")
	f.receive(t, f.client, "answer")
	_ = f.pod.Close()
	f.receiveEnd(t, f.client)
	if err := f.end(t); err != nil || f.stream.resets.Load() != 0 {
		t.Errorf("relay = %v with %d resets, want a good end", err, f.stream.resets.Load())
	}
}

func TestForwardPodEndsFirst(t *testing.T) {
	f := forward(t, relay{})
	f.send(t, f.pod, "hello")
	_ = f.pod.CloseWrite()
	f.receive(t, f.client, "hello")
	f.receiveEnd(t, f.client)
	f.send(t, f.client, "last words")
	f.receive(t, f.pod, "last words")
	_ = f.client.CloseWrite()
	f.receiveEnd(t, f.pod)
	if err := f.end(t); err != nil || f.stream.resets.Load() != 0 {
		t.Errorf("relay = %v with %d resets, want a good end", err, f.stream.resets.Load())
	}
}

func TestForwardDoesNotWaitLongForTheClient(t *testing.T) {
	f := forward(t, relay{linger: 20 * time.Millisecond})
	f.send(t, f.pod, "bye")
	_ = f.pod.Close()
	if err := f.end(t); err != nil || f.stream.resets.Load() != 1 {
		t.Errorf("relay = %v with %d resets, want nil with one", err, f.stream.resets.Load())
	}
	f.receive(t, f.client, "bye")
}

func TestForwardPodResets(t *testing.T) {
	f := forward(t, relay{})
	_ = f.pod.SetLinger(0)
	_ = f.pod.Close()
	if err := f.end(t); err != nil || f.stream.resets.Load() == 0 {
		t.Errorf("relay = %v with %d resets, want no error and a reset", err, f.stream.resets.Load())
	}
}

// A client that ends its side and then vanishes is not read from any more.
func TestForwardNoticesADeadClient(t *testing.T) {
	f := forward(t, relay{probe: 5 * time.Millisecond})
	_ = f.client.CloseWrite()
	f.receiveEnd(t, f.pod)
	_ = f.stream.TCPConn.Close() // the streaming server ends the connection
	if err := f.end(t); err != nil {
		t.Errorf("relay = %v, want nil: the client has left", err)
	}
	f.receiveEnd(t, f.pod)
}

func TestForwardStops(t *testing.T) {
	f := forward(t, relay{})
	f.send(t, f.client, "x")
	f.receive(t, f.pod, "x")
	f.cancel()
	if err := f.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("relay = %v, want that it was cancelled", err)
	}
}

func forwardingService(t *testing.T, p *Pod) *Service {
	t.Helper()
	s := &Service{opts: Options{StateDir: t.TempDir()}.withDefaults(), pods: newTable[*Pod]("pod")}
	if err := s.pods.add(p); err != nil {
		t.Fatal(err)
	}
	return s
}

func testPod(phase PodPhase, net runtimeapi.NamespaceMode) *Pod {
	rec := PodRecord{ID: "podforwarded", Created: time.Now()}
	rec.Config.Msg = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: net},
		}},
	}
	p := newPod("", rec)
	p.state.Phase = phase
	return p
}

func TestPortForwardIsRefused(t *testing.T) {
	ready := forwardingService(t, testPod(PodReady, runtimeapi.NamespaceMode_NODE))
	ended := forwardingService(t, testPod(PodNotReady, runtimeapi.NamespaceMode_NODE))
	client, server := tcpPair(t)
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

// The port is that of the pod's own loopback interface, or of the node's for a
// pod on the node's network.
func TestPortForwardReachesThePod(t *testing.T) {
	needRoot(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			p := testPod(PodReady, mode)
			s := forwardingService(t, p)
			netns := ""
			if mode == runtimeapi.NamespaceMode_POD {
				dir := s.podStateDir(p.ID)
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
			client, server := tcpPair(t)
			done := make(chan error, 1)
			go func() { done <- s.ServePortForward(t.Context(), p.ID, port, &clientStream{TCPConn: server}) }()
			f := forwarded{client: client}
			f.send(t, client, "ping")
			f.receive(t, client, "ping")
			_ = client.CloseWrite()
			f.receiveEnd(t, client)
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
