package imagestore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
)

// Check compares configurations, repositories.json, the layer store, the sources of layers, and the
// memory of s with each other. It does not read layers; overlay's Check does. The error means that
// the store cannot be read. Whatever is wrong with its content is a problem.
func (s *Store) Check(ctx context.Context) ([]overlay.Problem, error) {
	s.change.Lock()
	defer s.change.Unlock()
	c := &checker{store: s, ids: map[digest.Digest]bool{}}
	for _, step := range []func() error{c.images, c.repositories, c.metadata, c.distribution} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(); err != nil {
			return nil, fmt.Errorf("check image store: %w", err)
		}
	}
	return c.problems, nil
}

type checker struct {
	store    *Store
	ids      map[digest.Digest]bool // of the configurations on disk
	problems []overlay.Problem
}

func (c *checker) found(path, format string, args ...any) {
	c.problems = append(c.problems, overlay.Problem{Path: path, What: fmt.Sprintf(format, args...)})
}

// images checks that every configuration is intact, has its layers, and is in memory.
func (c *checker) images() error {
	entries, err := os.ReadDir(c.store.db.contentDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(c.store.db.contentDir(), e.Name())
		id := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if id.Validate() != nil {
			c.found(path, "is no image ID")
			continue
		}
		c.ids[id] = true
		if _, err := c.store.loadImage(id); err != nil {
			c.found(path, "%v", err)
		} else if _, err := c.store.Get(id.String()); err != nil {
			c.found(path, "image is on disk but not in the service: %v", err)
		}
	}
	for _, img := range c.store.List() {
		if !c.ids[img.ID] {
			c.found(filepath.Join(c.store.db.contentDir(), img.ID.Encoded()), "image of the service is missing")
		}
	}
	return nil
}

// repositories checks that repositories.json agrees with the memory and names only images.
func (c *checker) repositories() error {
	path := c.store.reposPath
	var f repositoriesFile
	if err := jsonfile.Read(path, &f); err != nil {
		return err
	}
	for name, refs := range f.Repositories {
		for ref, id := range refs {
			if parsed, err := ParseReference(ref); err != nil {
				c.found(path, "%s: %v", ref, err)
			} else if got, ok := f.Repositories.get(parsed); !ok || got != id {
				c.found(path, "%s under %s is not in the form that look-ups use", ref, name)
			}
			if !c.ids[id] {
				c.found(path, "%s is an image that is missing: %s", ref, id)
			}
			if c.store.repos[name][ref] != id {
				c.found(path, "%s differs from the service's", ref)
			}
		}
	}
	return nil
}

// metadata checks that all metadata is of an image.
func (c *checker) metadata() error {
	entries, err := os.ReadDir(c.store.db.metadataDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !c.ids[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] {
			c.found(filepath.Join(c.store.db.metadataDir(), e.Name()), "metadata without an image")
		}
	}
	return nil
}

// distribution checks the records of the sources of layers.
func (c *checker) distribution() error {
	problems, err := c.store.distribution.check()
	c.problems = append(c.problems, problems...)
	return err
}
