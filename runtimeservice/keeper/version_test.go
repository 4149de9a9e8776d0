package keeper

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

// foreignKeeper serves one connection as a keeper of the given versions. It answers every request
// with success.
func foreignKeeper(t *testing.T, dir string, hello wire.Hello) (asked chan string) {
	t.Helper()
	asked = make(chan string, 100)
	done := serveOnce(t, dir, func(conn *wire.Conn) {
		for {
			m, fds, err := conn.Receive(nil)
			if err != nil {
				return
			}
			fds.Close()
			asked <- m.Op
			body := any(wire.List{})
			if m.Op == wire.OpHello {
				body = hello
			}
			packet, err := wire.Encode(wire.Message{ID: m.ID, Op: m.Op}, body)
			if err != nil || conn.Send(packet, nil) != nil {
				return
			}
		}
	})
	go func() {
		<-done
		close(asked)
	}()
	return asked
}

// The client uses a keeper of a later release that supports the client's protocol version.
func TestNewerKeeperThatStillSpeaksOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keeper")
	asked := foreignKeeper(t, dir, wire.Hello{Version: wire.Version + 8, Min: wire.Version, Pid: os.Getpid(), Exe: "later"})
	c, err := Connect(t.Context(), Options{Dir: dir, Binary: "/nonexistent", StartTimeout: 10 * time.Second, NoUpgrade: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("List = %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for op := range asked {
		if op == wire.OpUpgrade {
			t.Error("the keeper was asked to execute an older program")
		}
	}
}

// The client refuses a keeper without a common version, and the error names the versions of both.
func TestKeeperWithoutCommonVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keeper")
	asked := foreignKeeper(t, dir, wire.Hello{Version: wire.Version + 8, Min: wire.Version + 7})
	_, err := Connect(t.Context(), Options{Dir: dir, Binary: "/nonexistent", StartTimeout: 10 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "no common protocol version: peer speaks 8 to 9, this side 1 to 1") {
		t.Errorf("Connect = %v", err)
	}
	for op := range asked {
		if op != wire.OpHello {
			t.Errorf("the keeper received %s", op)
		}
	}
}

// serveOnce listens in dir like a keeper and serves one connection, on another goroutine. done is
// closed at its end.
func serveOnce(t *testing.T, dir string, serve func(*wire.Conn)) (done <-chan struct{}) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := wire.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(listener, false); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		_ = unix.Close(listener)
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		conn, err := wire.NewConn(fd)
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer func() { _ = conn.Close() }()
		serve(conn)
	}()
	return ended
}
