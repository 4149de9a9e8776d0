package unixsock

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func listenOn(t *testing.T, args Args) *Listener {
	t.Helper()
	l, err := Listen(t.Context(), args)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestOwnerAndMode(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: changes the owner of files")
	}
	path := filepath.Join(t.TempDir(), "run", "mica", "s")
	listenOn(t, Args{Path: path, Mode: 0o660, Group: "4242"})
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("mode %v", info.Mode())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Gid != 4242 {
		t.Errorf("owner %+v", info.Sys())
	}
	if _, err := os.Lstat(path + bornSuffix); err == nil {
		t.Error("the temporary name remains")
	}
}

func TestNamedGroup(t *testing.T) {
	if gid, err := lookupGroup("root"); gid != 0 || err != nil {
		t.Errorf("root: %d, %v", gid, err)
	}
	if _, err := Listen(t.Context(), Args{Path: filepath.Join(t.TempDir(), "s"), Group: "no such group"}); err == nil {
		t.Error("Listen accepts an unknown group")
	}
}

func TestLiveSocketIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listenOn(t, Args{Path: path, Mode: 0o600})
	if _, err := Listen(t.Context(), Args{Path: path, Mode: 0o600}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first listener: %v", err)
	}
	_ = conn.Close()
}

func TestDeadSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	// A process that dies between bind and rename leaves the temporary name.
	if err := os.WriteFile(path+bornSuffix, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	listenOn(t, Args{Path: path, Mode: 0o600})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestOtherFilesAreNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), Args{Path: path}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); string(data) != "precious" {
		t.Errorf("the file holds %q, %v", data, err)
	}
}

func TestCloseRemovesOnlyItsOwnName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := listenOn(t, Args{Path: path})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := listenOn(t, Args{Path: path})
	for range 2 {
		if err := first.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the second socket was removed: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("Close leaves the socket")
	}
}
