package mounts

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A bind of a submount shows only what is in the source, whatever symbolic links replace
// directories there.
func TestBindBelowFollowsNoLinks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	source, outside, binds := filepath.Join(dir, "source"), filepath.Join(dir, "outside"), filepath.Join(dir, "binds")
	for _, path := range []string{filepath.Join(source, "dir/sub"), filepath.Join(outside, "sub")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, filepath.Join(source, "dir/sub"))
	if err := os.WriteFile(filepath.Join(source, "dir/sub/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bound := filepath.Join(binds, "0")
	if err := BindBelow(source, "dir/sub", bound, unix.MS_PRIVATE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountBind(t, bound) })
	if _, err := os.Stat(filepath.Join(bound, "file")); err != nil {
		t.Errorf("what is bound: %v", err)
	}

	link(t, outside, filepath.Join(source, "link"))
	link(t, filepath.Join(source, "dir/sub"), filepath.Join(source, "last"))
	link(t, "../outside", filepath.Join(source, "up"))
	for _, path := range []string{"link/sub", "last", "up/sub", "../outside/sub", "absent", "dir/sub/file/x"} {
		target := filepath.Join(binds, "refused")
		err := BindBelow(source, path, target, unix.MS_PRIVATE)
		if err == nil {
			unmountBind(t, target)
		}
		if path == "../outside/sub" {
			if err == nil || IsHidden(err) {
				t.Errorf("bind %s: %v", path, err)
			}
		} else if !IsHidden(err) {
			t.Errorf("bind %s: %v", path, err)
		}
		if _, err := os.Lstat(target); err == nil {
			t.Errorf("bind %s left %s", path, target)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
}

func mount(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountBind(t, path) })
}

func unmountBind(t *testing.T, path string) {
	t.Helper()
	if err := unix.Unmount(path, 0); err != nil {
		t.Errorf("unmount %s: %v", path, err)
	}
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}
