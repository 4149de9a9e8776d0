package runtimeservice

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestMountedBelow(t *testing.T) {
	var all []*mountinfo.Info
	for _, point := range []string{"/", "/a/z", "/a", "/a/b/c", "/a/b", "/ab", "/a/b"} {
		all = append(all, &mountinfo.Info{Mountpoint: point})
	}
	for source, want := range map[string][]string{
		"/a":   {"b", "b/c", "z"},
		"/a/b": {"c"},
		"/ab":  nil,
		"/":    {"a", "a/b", "a/b/c", "a/z", "ab"},
	} {
		if got := mountedBelow(all, source); !slices.Equal(got, want) {
			t.Errorf("below %s: %q, want %q", source, got, want)
		}
	}
}

// What a bind of a submount shows is in the source, whatever symbolic links
// somebody has put there meanwhile.
func TestBindBelowFollowsNoLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
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
	if err := bindBelow(source, "dir/sub", bound, unix.MS_PRIVATE); err != nil {
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
		err := bindBelow(source, path, target, unix.MS_PRIVATE)
		if err == nil {
			unmountBind(t, target)
		}
		if path == "../outside/sub" {
			if err == nil || isHidden(err) {
				t.Errorf("bind %s: %v", path, err)
			}
		} else if !isHidden(err) {
			t.Errorf("bind %s: %v", path, err)
		}
		if _, err := os.Lstat(target); err == nil {
			t.Errorf("bind %s left %s", path, target)
		}
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
