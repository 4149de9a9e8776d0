package streams

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testtcp"
)

// clientStream is the server's end of a client's stream, as with SPDY: Close ends one direction,
// Reset both.
type clientStream struct {
	*net.TCPConn
	resets atomic.Int32
}

func (c *clientStream) Close() error { return c.CloseWrite() }
func (c *clientStream) Reset() error { c.resets.Add(1); return c.TCPConn.Close() }

// forwarded is a relay between a client and a pod. The test acts as both.
type forwarded struct {
	client, pod *net.TCPConn
	stream      *clientStream
	ended       chan error
	cancel      context.CancelFunc
}

func forward(t *testing.T, r relay) forwarded {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	client, server := testtcp.Pair(t)
	near, pod := testtcp.Pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	f := forwarded{client: client, pod: pod, stream: &clientStream{TCPConn: server}, ended: make(chan error, 1), cancel: cancel}
	r.client, r.pod = f.stream, near
	r.probe, r.linger = cmp.Or(r.probe, time.Hour), cmp.Or(r.linger, time.Hour)
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
	case <-time.After(patience.Of(time.Minute)):
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
	_ = from.SetReadDeadline(time.Now().Add(patience.Of(time.Minute)))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(from, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v, want %q", got, err, want)
	}
}

func (f forwarded) receiveEnd(t *testing.T, from *net.TCPConn) {
	t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(patience.Of(time.Minute)))
	if got, err := io.ReadAll(from); err != nil || len(got) > 0 {
		t.Fatalf("received %q, %v, want the end", got, err)
	}
}

func TestRelayClientEndsFirst(t *testing.T) {
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
		t.Errorf("relay = %v with %d resets, want nil without a reset", err, f.stream.resets.Load())
	}
}

func TestRelayPodEndsFirst(t *testing.T) {
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
		t.Errorf("relay = %v with %d resets, want nil without a reset", err, f.stream.resets.Load())
	}
}

func TestRelayDoesNotWaitLongForTheClient(t *testing.T) {
	f := forward(t, relay{linger: 20 * time.Millisecond})
	f.send(t, f.pod, "bye")
	_ = f.pod.Close()
	if err := f.end(t); err != nil || f.stream.resets.Load() != 1 {
		t.Errorf("relay = %v with %d resets, want nil with one", err, f.stream.resets.Load())
	}
	f.receive(t, f.client, "bye")
}

func TestRelayPodResets(t *testing.T) {
	f := forward(t, relay{})
	_ = f.pod.SetLinger(0)
	_ = f.pod.Close()
	if err := f.end(t); err != nil || f.stream.resets.Load() == 0 {
		t.Errorf("relay = %v with %d resets, want no error and a reset", err, f.stream.resets.Load())
	}
}

// Nothing reads from a client that has ended its side. Its disconnection is still noticed.
func TestRelayNoticesADeadClient(t *testing.T) {
	f := forward(t, relay{probe: 5 * time.Millisecond})
	_ = f.client.CloseWrite()
	f.receiveEnd(t, f.pod)
	_ = f.stream.TCPConn.Close() // the streaming server ends the connection
	if err := f.end(t); err != nil {
		t.Errorf("relay = %v, want nil: the client has disconnected", err)
	}
	f.receiveEnd(t, f.pod)
}

func TestRelayStops(t *testing.T) {
	f := forward(t, relay{})
	f.send(t, f.client, "x")
	f.receive(t, f.pod, "x")
	f.cancel()
	if err := f.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("relay = %v, want that it was cancelled", err)
	}
}
