package mounts

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestBelow(t *testing.T) {
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
		if got := Below(all, source); !slices.Equal(got, want) {
			t.Errorf("below %s: %q, want %q", source, got, want)
		}
	}
}

func TestContaining(t *testing.T) {
	table := []*mountinfo.Info{
		{ID: 1, Mountpoint: "/"},
		{ID: 2, Mountpoint: "/data"},
		{ID: 3, Mountpoint: "/data/a"},
		{ID: 4, Mountpoint: "/data"}, // over the other one
	}
	for path, want := range map[string]int{"/": 1, "/other": 1, "/data": 4, "/data/ab": 4, "/data/a": 3, "/data/a/b": 3, "/database": 1} {
		if got := Containing(table, path); got == nil || got.ID != want {
			t.Errorf("mount that contains %s = %+v, want ID %d", path, got, want)
		}
	}
	if got := Containing(table[1:], "/other"); got != nil {
		t.Errorf("mount that contains /other = %+v, want none", got)
	}
}

func TestIsMountPoint(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	at, link := filepath.Join(dir, "at"), filepath.Join(dir, "link")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at, link); err != nil {
		t.Fatal(err)
	}
	mount(t, at)
	for path, want := range map[string]bool{at: true, link: false, dir: false, filepath.Join(dir, "missing"): false, filepath.Join(at, "x/y"): false} {
		if got, err := IsMountPoint(path); err != nil || got != want {
			t.Errorf("IsMountPoint(%s) = %t, %v, want %t", path, got, err, want)
		}
	}
}
