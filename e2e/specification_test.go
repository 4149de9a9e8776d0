package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/micarun/mica/e2e/images"
)

// Every test that SPECIFICATION.md names as the holder of a promise exists.
func TestSpecificationNamesRealTests(t *testing.T) {
	root, err := images.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "SPECIFICATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "e2e", "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob(filepath.Join(root, "e2e", "*", "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, below...)
	var source strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(data)
	}
	// A star at a name's end stands for any rest.
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
