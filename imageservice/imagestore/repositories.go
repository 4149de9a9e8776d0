package imagestore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/jsonfile"
)

// maxDigests is the maximum number of manifest digests that are kept for one image of one
// repository.
const maxDigests = 256

// repositories is the content of repositories.json: familiar name → familiar reference → image ID.
// It is treated as immutable: a change is made to a clone, which replaces it after it is saved.
type repositories map[string]map[string]digest.Digest

// repositoriesFile is the JSON document.
type repositoriesFile struct{ Repositories repositories }

// loadRepositories reads the file at path. Like dockerd it writes an empty file if there is none.
func loadRepositories(path string) (repositories, error) {
	leftovers, err := filepath.Glob(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".*"))
	if err != nil {
		return nil, fmt.Errorf("sweep %s: %w", path, err)
	}
	for _, l := range leftovers {
		if err := os.Remove(l); err != nil {
			return nil, fmt.Errorf("sweep %s: %w", path, err)
		}
	}
	var f repositoriesFile
	err = jsonfile.Read(path, &f)
	if errors.Is(err, fs.ErrNotExist) {
		r := repositories{}
		return r, r.save(path)
	}
	if err != nil {
		return nil, fmt.Errorf("load repositories: %w", err)
	}
	if f.Repositories == nil {
		f.Repositories = repositories{}
	}
	return f.Repositories, nil
}

func (r repositories) save(path string) error {
	if err := jsonfile.WriteSync(path, repositoriesFile{Repositories: r}); err != nil {
		return fmt.Errorf("save repositories: %w", err)
	}
	return nil
}

func (r repositories) clone() repositories {
	c := make(repositories, len(r))
	for name, refs := range r {
		c[name] = maps.Clone(refs)
	}
	return c
}

// get returns the ID for which a reference with a tag or digest stands.
func (r repositories) get(ref reference.Named) (digest.Digest, bool) {
	id, ok := r[reference.FamiliarName(ref)][reference.FamiliarString(ref)]
	return id, ok
}

// set makes ref stand for id and returns the ID for which it stood before, or "".
func (r repositories) set(ref reference.Named, id digest.Digest) digest.Digest {
	name, key := reference.FamiliarName(ref), reference.FamiliarString(ref)
	if r[name] == nil {
		r[name] = make(map[string]digest.Digest)
	}
	old := r[name][key]
	r[name][key] = id
	return old
}

// byID returns the references to each image.
func (r repositories) byID() map[digest.Digest][]reference.Named {
	byID := make(map[digest.Digest][]reference.Named)
	for _, refs := range r {
		for key, id := range refs {
			if ref, err := reference.ParseNormalizedNamed(key); err == nil {
				byID[id] = append(byID[id], ref)
			}
		}
	}
	return byID
}

// of returns the references to one image.
func (r repositories) of(id digest.Digest) []reference.Named {
	var list []reference.Named
	for _, refs := range r {
		for key, v := range refs {
			if v != id {
				continue
			}
			if ref, err := reference.ParseNormalizedNamed(key); err == nil {
				list = append(list, ref)
			}
		}
	}
	return list
}

// boundDigests deletes references by digest to an image in the repository of ref until maxDigests
// are left. ref itself stays. A pull of a deleted reference finds the image again.
func (r repositories) boundDigests(ref reference.Named, id digest.Digest) {
	refs, keep := r[reference.FamiliarName(ref)], reference.FamiliarString(ref)
	var digests []string
	for key, v := range refs {
		if v == id && strings.Contains(key, "@") {
			digests = append(digests, key)
		}
	}
	for _, key := range digests[:max(0, len(digests)-maxDigests)] {
		if key == keep {
			key = digests[len(digests)-1]
		}
		delete(refs, key)
	}
}

// removeID deletes every reference to id.
func (r repositories) removeID(id digest.Digest) {
	for name, refs := range r {
		maps.DeleteFunc(refs, func(_ string, v digest.Digest) bool { return v == id })
		if len(refs) == 0 {
			delete(r, name)
		}
	}
}
