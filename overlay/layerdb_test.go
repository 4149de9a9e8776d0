package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadStringIsBounded: Open reads the files of every layer. A file that grew too large takes no
// memory.
func TestReadStringIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache-id")
	if err := os.WriteFile(path, []byte(" id\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readString(path); err != nil || got != "id" {
		t.Errorf("readString = %q, %v", got, err)
	}
	if err := os.Truncate(path, 1<<32); err != nil {
		t.Fatal(err)
	}
	if got, err := readString(path); err == nil || len(got) > maxField+1 || !strings.Contains(err.Error(), "cache-id") {
		t.Errorf("readString = %d bytes, %v", len(got), err)
	}
}
