package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
)

// Check compares, on disk, imagedb, repositories.json, the layer store and the distribution metadata with each other. It reads no layer: that is
// what overlay's Check does. The error is that of a store that cannot be read; what is wrong in it are problems.
func (s *Service) Check(ctx context.Context) ([]overlay.Problem, error) {
	s.change.Lock()
	defer s.change.Unlock()
	c := &checker{service: s, root: filepath.Join(s.opts.Root, "image", "overlay2")}
	for _, step := range []func() error{c.images, c.repositories, c.metadata, c.sources, c.blobs} {
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
	service  *Service
	root     string
	ids      []digest.Digest
	problems []overlay.Problem
}

func (c *checker) found(path, format string, args ...any) {
	c.problems = append(c.problems, overlay.Problem{Path: path, What: fmt.Sprintf(format, args...)})
}

// images checks that every configuration is whole, has its layers, and is in memory.
func (c *checker) images() error {
	entries, err := os.ReadDir(c.service.db.contentDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(c.service.db.contentDir(), e.Name())
		id := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if id.Validate() != nil {
			c.found(path, "is no image ID")
			continue
		}
		c.ids = append(c.ids, id)
		if _, err := c.service.loadImage(id); err != nil {
			c.found(path, "%v", err)
		} else if _, err := c.service.Get(id.String()); err != nil {
			c.found(path, "image is on disk but not in the service: %v", err)
		}
	}
	for _, img := range c.service.List() {
		if !slices.Contains(c.ids, img.ID) {
			c.found(filepath.Join(c.service.db.contentDir(), img.ID.Encoded()), "image of the service is missing")
		}
	}
	return nil
}

// repositories checks that repositories.json is what the service believes and names images only.
func (c *checker) repositories() error {
	path := c.service.repositoriesPath()
	var f repositoriesFile
	if err := jsonfile.Read(path, &f); err != nil {
		return err
	}
	for name, refs := range f.Repositories {
		for ref, id := range refs {
			if parsed, err := parseReference(ref); err != nil {
				c.found(path, "%s: %v", ref, err)
			} else if got, ok := f.Repositories.get(parsed); !ok || got != id {
				c.found(path, "%s under %s is not in the form that look-ups use", ref, name)
			}
			if !slices.Contains(c.ids, id) {
				c.found(path, "%s is an image that is missing: %s", ref, id)
			}
			if c.service.repos[name][ref] != id {
				c.found(path, "%s differs from the service's", ref)
			}
		}
	}
	return nil
}

// metadata checks that only images have metadata.
func (c *checker) metadata() error {
	entries, err := os.ReadDir(c.service.db.metadataDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(c.ids, digest.NewDigestFromEncoded(digest.SHA256, e.Name())) {
			c.found(filepath.Join(c.service.db.metadataDir(), e.Name()), "metadata without an image")
		}
	}
	return nil
}

// sources checks that every layer's sources can be read and lead back to it.
func (c *checker) sources() error {
	dir := filepath.Join(c.root, "distribution", "v2metadata-by-diffid", "sha256")
	return eachFile(dir, func(name string) error {
		path := filepath.Join(dir, name)
		diffID := digest.NewDigestFromEncoded(digest.SHA256, name)
		var sources []layerSource
		if diffID.Validate() != nil || jsonfile.Read(path, &sources) != nil {
			c.found(path, "is not a list of sources of a layer")
			return nil
		}
		for _, s := range sources {
			if s.Digest.Validate() != nil {
				c.found(path, "has the digest %q", s.Digest)
			} else if got, err := os.ReadFile(c.service.distribution.diffIDPath(s.Digest)); err != nil || digest.Digest(got) != diffID {
				c.found(path, "blob %s does not lead back to the layer", s.Digest)
			}
		}
		return nil
	})
}

// blobs checks that every blob's layer knows it.
func (c *checker) blobs() error {
	dir := filepath.Join(c.root, "distribution", "diffid-by-digest", "sha256")
	return eachFile(dir, func(name string) error {
		path := filepath.Join(dir, name)
		got, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		diffID := digest.Digest(strings.TrimSpace(string(got)))
		if diffID.Validate() != nil {
			c.found(path, "holds %q, not a diff ID", got)
			return nil
		}
		sources, err := c.service.distribution.sources(diffID)
		if err != nil {
			return err
		}
		blob := digest.NewDigestFromEncoded(digest.SHA256, name)
		if !slices.ContainsFunc(sources, func(s layerSource) bool { return s.Digest == blob }) {
			c.found(path, "layer %s does not know the blob", diffID)
		}
		return nil
	})
}

// eachFile calls f for the names in a directory that may be absent.
func eachFile(dir string, f func(name string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := f(e.Name()); err != nil {
			return err
		}
	}
	return nil
}
