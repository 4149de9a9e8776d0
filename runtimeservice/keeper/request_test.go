package keeper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

func connectForeign(t *testing.T) (c *Client, asked chan string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keeper")
	asked = foreignKeeper(t, dir, wire.Hello{Version: wire.Version, Min: wire.MinVersion, Pid: os.Getpid()})
	c, err := Connect(t.Context(), Options{Dir: dir, Binary: "/nonexistent", StartTimeout: patience.Of(10 * time.Second), NoUpgrade: true})
	if err != nil {
		t.Fatal(err)
	}
	return c, asked
}

// Every kind of request returns at once when its context ends, and the link accepts the next
// request.
func TestRequestWithAnExpiredContextEnds(t *testing.T) {
	c, asked := connectForeign(t)
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, request := range map[string]func(context.Context) error{
		"repeated with the next keeper": func(ctx context.Context) error { return c.Kill(ctx, "c1", syscall.SIGKILL, false) },
		"sent once":                     func(ctx context.Context) error { return c.Start(ctx, "c1") },
		"attach": func(ctx context.Context) error {
			_, err := c.Attach(ctx, "c1", AttachArgs{Stdout: true})
			return err
		},
	} {
		for want, ctx := range map[error]context.Context{context.DeadlineExceeded: expired, context.Canceled: cancelled} {
			ended := make(chan error, 1)
			go func() { ended <- request(ctx) }()
			select {
			case err := <-ended:
				if !errors.Is(err, want) || errors.Is(err, errLost) || strings.Contains(err.Error(), "lost") {
					t.Errorf("request %s: %v, want %v", name, err, want)
				}
			case <-time.After(wait()):
				t.Fatalf("request %s does not return", name)
			}
		}
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("request after the cancelled ones: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	var ops []string
	for op := range asked {
		ops = append(ops, op)
	}
	if len(ops) != 2 || ops[0] != wire.OpHello || ops[1] != wire.OpList {
		t.Errorf("the keeper received %v", ops)
	}
}

// A stopped keeper does not read. Once its socket is full, requests end with their contexts, and
// not with the error of a lost keeper.
func TestRequestsToAStoppedKeeperEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keeper")
	release := deafKeeper(t, dir)
	c, err := Connect(t.Context(), Options{Dir: dir, Binary: "/nonexistent", StartTimeout: patience.Of(10 * time.Second), NoUpgrade: true})
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("c", 64)
	for range 2000 { // the kernel queues a few hundred packets
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		err := c.Delete(ctx, id)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errdefs.ErrUnavailable) {
			t.Fatalf("Delete = %v, want the error of its context", err)
		}
	}
	release()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// deafKeeper answers one client's Hello and then reads nothing until release.
func deafKeeper(t *testing.T, dir string) (release func()) {
	t.Helper()
	released := make(chan struct{})
	done := serveOnce(t, dir, func(conn *wire.Conn) {
		m, fds, err := conn.Receive(nil)
		if err != nil {
			return
		}
		fds.Close()
		packet, err := wire.Encode(wire.Message{ID: m.ID, Op: m.Op}, wire.Hello{Version: wire.Version, Min: wire.MinVersion, Pid: os.Getpid()})
		if err != nil || conn.Send(packet, nil) != nil {
			return
		}
		<-released
	})
	return func() { close(released); <-done }
}
