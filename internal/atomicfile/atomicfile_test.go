package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteReplacesTheWholeFile(t *testing.T) {
	for name, o := range map[string]Options{"default": {}, "synced": {Sync: true}, "readable": {Mode: 0o644}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			for _, want := range []string{"a long first version of the content", "b", ""} {
				if err := Write(path, []byte(want), o); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || string(got) != want {
					t.Errorf("content = %q, %v, want %q", got, err, want)
				}
			}
			want := o.Mode
			if want == 0 {
				want = 0o600
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != want {
				t.Errorf("mode = %v, %v, want %v", info.Mode(), err, want)
			}
			onlyEntry(t, path)
		})
	}
}

func onlyEntry(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v, want only %s", entries, err, path)
	}
}

func TestWriteThatFailsLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "full")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, []byte("x"), Options{}); err == nil {
		t.Error("a file replaced a directory that is not empty")
	}
	onlyEntry(t, dir)
	if err := Write(filepath.Join(dir, "missing/file"), nil, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write into a missing directory = %v, want fs.ErrNotExist", err)
	}
}

func TestSyncDirNeedsADirectory(t *testing.T) {
	if err := SyncDir(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir = %v, want fs.ErrNotExist", err)
	}
}
