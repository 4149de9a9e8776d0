package mounts

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// stack mounts two file systems on a new directory, the lower one with a file in use.
func stack(t *testing.T) (at string) {
	t.Helper()
	needRoot(t)
	at = filepath.Join(t.TempDir(), "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
		used, err := os.Create(filepath.Join(at, "used"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = used.Close() })
	}
	return at
}

func TestRemoveEveryMount(t *testing.T) {
	for name, remove := range map[string]func(string) error{"Detach": Detach, "Unmount": Unmount} {
		t.Run(name, func(t *testing.T) {
			at := stack(t)
			if err := remove(at); err != nil {
				t.Fatal(err)
			}
			if mounted, err := IsMountPoint(at); mounted || err != nil {
				t.Errorf("still mounted: %t, %v", mounted, err)
			}
			file := filepath.Join(at, "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{at, filepath.Join(at, "missing"), file, filepath.Join(file, "below")} {
				if err := remove(path); err != nil {
					t.Errorf("removal of no mount: %v", err)
				}
			}
		})
	}
}

func TestRemoveFollowsNoLink(t *testing.T) {
	for name, remove := range map[string]func(string) error{"Detach": Detach, "Unmount": Unmount} {
		t.Run(name, func(t *testing.T) {
			at := stack(t)
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(at, link); err != nil {
				t.Fatal(err)
			}
			if err := remove(link); err != nil {
				t.Error(err)
			}
			if mounted, err := IsMountPoint(at); !mounted || err != nil {
				t.Errorf("the link's target is mounted = %t, %v", mounted, err)
			}
		})
	}
}

func TestDetachBelow(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "a")
	points := []string{root, filepath.Join(root, "b"), filepath.Join(root, "b/c"), filepath.Join(dir, "ab")}
	for _, p := range points {
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", p, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(p, unix.MNT_DETACH) })
	}
	if err := DetachBelow(root); err != nil {
		t.Fatal(err)
	}
	for i, p := range points {
		if mounted, err := IsMountPoint(p); mounted != (i == 3) || err != nil {
			t.Errorf("%s is mounted = %t, %v", p, mounted, err)
		}
	}
}
