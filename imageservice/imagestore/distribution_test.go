package imagestore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Beyond the limit the oldest sources are forgotten, in both directions.
func TestSourcesAreBounded(t *testing.T) {
	d := &distribution{dir: t.TempDir()}
	for i := range maxSources + 5 {
		for _, repo := range []string{"a", "b"} {
			if err := d.add(someDigest, layerSource{Digest: digest.FromString(fmt.Sprint(i / 2)), SourceRepository: fmt.Sprint(repo, i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if sources, err := d.sources(someDigest); err != nil || len(sources) != maxSources || sources[0].SourceRepository != "a30" {
		t.Errorf("%d sources from %v, %v", len(sources), sources[0], err)
	}
	if problems, err := d.check(); err != nil || len(problems) != 0 {
		t.Errorf("check found %v, %v", problems, err)
	}
}

// The next start removes records of sources that a power cut has damaged. The others stay.
func TestOpenRepairsDistribution(t *testing.T) {
	for name, damage := range map[string]func(e *env, b built) string{
		"blob emptied":    func(e *env, b built) string { return e.store.distribution.diffIDPath(b.blobs[0]) },
		"sources emptied": func(e *env, b built) string { return e.store.distribution.sourcesPath(b.diffIDs[0]) },
		"leftover": func(e *env, b built) string {
			return filepath.Join(filepath.Dir(e.store.distribution.diffIDPath(b.blobs[0])), ".tmp-1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			b := e.add("example.org/app:v1", "1", "2", "3", "4")
			if err := os.WriteFile(damage(e, b), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if problems, err := e.store.Check(t.Context()); err != nil || len(problems) == 0 {
				t.Errorf("Check found %v, %v", problems, err)
			}
			e.reopen()
			if sources, err := e.store.distribution.sources(b.diffIDs[1]); err != nil || len(sources) != 1 {
				t.Errorf("sources of an undamaged layer: %v, %v", sources, err)
			}
		})
	}
}
