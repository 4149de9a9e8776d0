package imagestore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/micarun/mica/overlay"
)

// Check finds what is wrong, and only that.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct{ path, content, want string }{
		"stranger":               {"imagedb/content/sha256/stranger", "", "is no image ID"},
		"metadata":               {"imagedb/metadata/sha256/" + strings.Repeat("a", 64) + "/parent", "x", "metadata without an image"},
		"content":                {"imagedb/content/sha256/" + strings.Repeat("a", 64), "{}", "content has digest"},
		"repositories: absent":   {"repositories.json", `{"Repositories":{"a":{"a:b":"` + someDigest + `"}}}`, "is an image that is missing"},
		"repositories: spelling": {"repositories.json", `{"Repositories":{"a":{"docker.io/library/a:b":"` + someDigest + `"}}}`, "not in the form"},
		"sources":                {"distribution/v2metadata-by-diffid/sha256/" + strings.Repeat("a", 64), "{", "is not a list of sources"},
		"source":                 {"distribution/v2metadata-by-diffid/sha256/" + strings.Repeat("a", 64), `[{"Digest":"` + someDigest + `"}]`, "does not lead back"},
		"blob":                   {"distribution/diffid-by-digest/sha256/" + strings.Repeat("a", 64), someDigest, "does not know the blob"},
		"blob garbage":           {"distribution/diffid-by-digest/sha256/" + strings.Repeat("a", 64), "x", "not a diff ID"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			path := e.path(c.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			before, readErr := os.ReadFile(path)
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			problems, err := e.store.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(problems, func(p overlay.Problem) bool { return strings.Contains(p.What, c.want) }) {
				t.Errorf("found %v, want %q", problems, c.want)
			}
			if readErr == nil {
				err = os.WriteFile(path, before, 0o600)
			} else if err = os.Remove(path); err == nil && name == "metadata" {
				err = os.Remove(filepath.Dir(path))
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
