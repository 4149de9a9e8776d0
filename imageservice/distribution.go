package imageservice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/jsonfile"
)

// maxSources is how many sources dockerd remembers for a layer.
const maxSources = 50

// layerSource is one place where a layer is known to be, in dockerd's form.
type layerSource struct {
	Digest           digest.Digest // of the blob
	SourceRepository string        // full name
	HMAC             string        // binds the entry to credentials; always empty here, as after an anonymous pull
}

// distribution is the directory image/overlay2/distribution: which blobs gave which layers. It is a cache: the files may be lost, but must not be wrong.
type distribution struct {
	dir string

	mu sync.Mutex // orders writers
}

func (d *distribution) diffIDPath(blob digest.Digest) string {
	return filepath.Join(d.dir, "diffid-by-digest", string(blob.Algorithm()), blob.Encoded())
}

func (d *distribution) sourcesPath(diffID digest.Digest) string {
	return filepath.Join(d.dir, "v2metadata-by-diffid", string(diffID.Algorithm()), diffID.Encoded())
}

// add records that a blob that was fetched from a repository, and checked, holds the layer diffID.
func (d *distribution) add(diffID digest.Digest, source layerSource) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sources, err := d.sources(diffID)
	if err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	sources = slices.DeleteFunc(sources, func(s layerSource) bool { return s == source })
	sources = append(sources, source)
	sources = sources[max(0, len(sources)-maxSources):]
	path := d.sourcesPath(diffID)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	if err := jsonfile.Write(path, sources); err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	if err := writeFile(d.diffIDPath(source.Digest), []byte(diffID)); err != nil {
		return fmt.Errorf("record layer of blob %s: %w", source.Digest, err)
	}
	return nil
}

// sources returns the recorded sources of a layer; an unreadable record counts as none.
func (d *distribution) sources(diffID digest.Digest) ([]layerSource, error) {
	data, err := os.ReadFile(d.sourcesPath(diffID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sources []layerSource
	if json.Unmarshal(data, &sources) != nil {
		return nil, nil
	}
	return sources, nil
}

// forget deletes what is recorded about layers that are gone.
func (d *distribution) forget(diffIDs []digest.Digest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, id := range diffIDs {
		sources, err := d.sources(id)
		errs = append(errs, err)
		for _, s := range sources {
			if s.Digest.Validate() == nil {
				errs = append(errs, removeFiles(d.diffIDPath(s.Digest)))
			}
		}
		errs = append(errs, removeFiles(d.sourcesPath(id)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget sources of layers: %w", err)
	}
	return nil
}
