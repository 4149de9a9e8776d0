package imagestore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Open removes temporary files, and refuses a broken repositories.json.
func TestOpenSweepsAndRefuses(t *testing.T) {
	e := newEnv(t)
	e.close()
	content := e.path("imagedb/content/sha256")
	for _, leftover := range []string{
		filepath.Join(content, ".tmp-1"), // of an older build
		filepath.Join(content, "."+strings.Repeat("a", 64)+".1"),
		e.path(".repositories.json.1"),
	} {
		if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := os.Stat(leftover); !os.IsNotExist(err) {
				t.Errorf("%s is still there", leftover)
			}
		}()
	}
	e.open()
	repositories := e.path("repositories.json")
	good := must(os.ReadFile(repositories))
	if err := os.WriteFile(repositories, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Root: e.root}, e.layers); err == nil || !strings.Contains(err.Error(), repositories) {
		t.Errorf("a broken repositories.json: %v", err)
	}
	if err := os.WriteFile(repositories, good, 0o600); err != nil {
		t.Fatal(err)
	}
}
