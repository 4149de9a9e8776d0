package jsonfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/micarun/mica/internal/testcost"
)

type doc struct{ Name string }

func TestWriteReplacesWholeDocument(t *testing.T) {
	for name, write := range map[string]func(string, any) error{"Write": Write, "WriteSync": WriteSync} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "doc.json")
			for _, want := range []string{"a long first version of the document", "b"} {
				if err := write(path, doc{want}); err != nil {
					t.Fatal(err)
				}
				var got doc
				if err := Read(path, &got); err != nil {
					t.Fatal(err)
				}
				if got.Name != want {
					t.Errorf("Name = %q, want %q", got.Name, want)
				}
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 {
				t.Errorf("directory holds %v, want only doc.json", entries)
			}
		})
	}
}

func TestWriteThatFailsKeepsTheOldDocument(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.json")
	if err := Write(path, doc{"old"}); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, func() {}); err == nil {
		t.Fatal("Write of a function succeeded")
	}
	var got doc
	if err := Read(path, &got); err != nil || got.Name != "old" {
		t.Errorf("Read = %+v, %v; want the old document", got, err)
	}
}

func TestReadMissing(t *testing.T) {
	if err := Read(filepath.Join(t.TempDir(), "none"), &doc{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read = %v, want fs.ErrNotExist", err)
	}
}

func TestReadTruncatedNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "torn.json")
	if err := os.WriteFile(path, []byte(`{"Name":"x`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Read(path, &doc{}); err == nil {
		t.Error("Read of a truncated file succeeded")
	}
}

func TestReadTooLargeTakesNoMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	var err error
	allocated := testcost.Allocated(func() { err = Read(path, &doc{}) })
	if err == nil || allocated > 1<<20 {
		t.Errorf("Read = %v, %d bytes allocated", err, allocated)
	}
}
