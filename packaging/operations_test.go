package packaging

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// inSources returns what the group of a pattern matches in the daemon's sources.
func inSources(t *testing.T, pattern string) map[string]bool {
	t.Helper()
	expr := regexp.MustCompile(pattern)
	found := map[string]bool{}
	for _, root := range []string{"cmd", "cri", "imageservice", "network", "overlay", "runtimeservice"} {
		err := filepath.WalkDir(filepath.Join("..", root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range expr.FindAllStringSubmatch(string(data), -1) {
				found[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(found) < 10 {
		t.Fatalf("%s matches only %v", pattern, found)
	}
	return found
}

// firstCells returns the code in the first column of the tables below a heading.
func firstCells(t *testing.T, heading string) map[string]bool {
	t.Helper()
	_, text, ok := strings.Cut(read(t, filepath.Join("..", "docs", "operations.md")), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("operations.md has no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	cells := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(text, -1) {
		cells[m[1]] = true
	}
	return cells
}

func TestMetricsAndStagesAreDocumented(t *testing.T) {
	for heading, pattern := range map[string]string{
		"Metrics":              `(?:Name:\s*|NewDesc\()"(mica_[a-z_]+)"`,
		"Why is my pod stuck?": `(?:operations\.Enter\(\w+, |\t\t\{)"([^"]+)"(?:\)|, s\.\w+\},\n)`,
	} {
		documented, real := firstCells(t, heading), inSources(t, pattern)
		for _, name := range slices.Sorted(maps.Keys(real)) {
			if !documented[name] {
				t.Errorf("operations.md, %s lacks %s", heading, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(documented)) {
			if !real[name] {
				t.Errorf("operations.md, %s has %s, which is not in the sources", heading, name)
			}
		}
	}
}
