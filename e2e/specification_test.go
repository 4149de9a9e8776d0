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

// named matches a package and its tests, as documents name them.
var named = regexp.MustCompile("`([a-z0-9/]+)` ((?:Test|Fuzz|Benchmark)\\w+\\*?(?:, (?:Test|Fuzz|Benchmark)\\w+\\*?)*)")

// SPECIFICATION.md and SECURITY.md name each test with its package.
func TestDocumentsNameThePackagesOfTests(t *testing.T) {
	root, err := images.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range []string{"SPECIFICATION.md", "SECURITY.md"} {
		text, err := os.ReadFile(filepath.Join(root, document))
		if err != nil {
			t.Fatal(err)
		}
		matches := named.FindAllStringSubmatch(string(text), -1)
		if len(matches) < 10 {
			t.Fatalf("%s names only %d packages with tests", document, len(matches))
		}
		for _, m := range matches {
			source := testSource(t, filepath.Join(root, m[1]))
			for _, name := range strings.Split(m[2], ", ") {
				begin, any := strings.CutSuffix(name, "*")
				if !any {
					begin += "("
				}
				if !strings.Contains(source, "func "+begin) {
					t.Errorf("%s: %s has no test %s", document, m[1], name)
				}
			}
		}
	}
}

// testSource returns the tests of a package.
func testSource(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(data)
	}
	return source.String()
}
