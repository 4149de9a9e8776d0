package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/micarun/mica/e2e/images"
)

// Every test named in SPECIFICATION.md exists.
func TestSpecificationNamesRealTests(t *testing.T) {
	root, err := images.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "SPECIFICATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		source.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A star at the end of a name matches any suffix.
	names := regexp.MustCompile(`\bTest\w+\*?`).FindAllString(string(text), -1)
	if len(names) < 10 {
		t.Fatalf("only %d tests are named: %v", len(names), names)
	}
	for _, name := range names {
		begin, any := strings.CutSuffix(name, "*")
		if !any {
			begin += "("
		}
		if !strings.Contains(source.String(), "func "+begin) {
			t.Errorf("no test %s", name)
		}
	}
}
