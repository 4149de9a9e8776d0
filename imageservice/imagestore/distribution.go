package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/atomicfile"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
)

const (
	// maxSources is the number of sources that dockerd keeps for a layer.
	maxSources = 50
	// maxSourcesSize bounds the file of the sources of a layer in bytes. It is several times the
	// size of the maxSources longest sources.
	maxSourcesSize = 256 << 10
	// maxDigestSize bounds the file of a digest in bytes. A digest of any algorithm is shorter.
	maxDigestSize = 1 << 10
)

// layerSource is a registry that has a layer, in dockerd's form.
type layerSource struct {
	Digest           digest.Digest // of the blob
	SourceRepository string        // full name
	HMAC             string        // binds the entry to credentials; Mica leaves it empty, as dockerd does after an anonymous pull
}

// distribution is the directory image/overlay2/distribution: the layer of each blob, and the blobs
// of each layer. It is a cache: files may be missing, but not wrong.
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

// add records that a blob from a repository, which was checked, has the layer diffID. The record is
// on stable storage after the next sync.
func (d *distribution) add(diffID digest.Digest, source layerSource) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	sources, err := d.sources(diffID)
	if err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	sources = slices.DeleteFunc(sources, func(s layerSource) bool { return s == source })
	sources = append(sources, source)
	for len(sources) > maxSources {
		oldest := sources[0].Digest
		sources = sources[1:]
		if !slices.ContainsFunc(sources, func(s layerSource) bool { return s.Digest == oldest }) {
			if err := removeFiles(d.diffIDPath(oldest)); err != nil {
				return fmt.Errorf("forget source of layer %s: %w", diffID, err)
			}
		}
	}
	path := d.sourcesPath(diffID)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	if err := jsonfile.Write(path, sources); err != nil {
		return fmt.Errorf("record source of layer %s: %w", diffID, err)
	}
	if err := writeFile(d.diffIDPath(source.Digest), []byte(diffID), atomicfile.Options{}); err != nil {
		return fmt.Errorf("record layer of blob %s: %w", source.Digest, err)
	}
	return nil
}

// sync makes the added records durable: once for all layers of an image instead of four times for
// each.
func (d *distribution) sync() error {
	if err := syncFilesystem(d.dir); err != nil {
		return fmt.Errorf("record sources of layers: %w", err)
	}
	return nil
}

// sources returns the recorded sources of a layer. A record that cannot be decoded counts as none.
func (d *distribution) sources(diffID digest.Digest) ([]layerSource, error) {
	data, err := readFile(d.sourcesPath(diffID), maxSourcesSize)
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsOutOfRange(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sources []layerSource
	if json.Unmarshal(data, &sources) != nil {
		return nil, nil //nolint:nilerr // a damaged file names no source, like a missing one
	}
	return sources, nil
}

// forget deletes the records of removed layers.
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

// repair deletes records that contradict each other, as after a power cut.
func (d *distribution) repair() error {
	for {
		problems, err := d.check()
		if err != nil {
			return fmt.Errorf("repair sources of layers: %w", err)
		}
		if len(problems) == 0 {
			return nil
		}
		for _, p := range problems {
			if err := removeFiles(p.Path); err != nil {
				return fmt.Errorf("repair sources of layers: %w", err)
			}
		}
	}
}

// check returns the files that are damaged or that contradict others. It reads each file once.
func (d *distribution) check() ([]overlay.Problem, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &distributionCheck{distribution: d, sources: map[digest.Digest][]digest.Digest{}, layers: map[digest.Digest]digest.Digest{}}
	sources, blobs := filepath.Join(d.dir, "v2metadata-by-diffid"), filepath.Join(d.dir, "diffid-by-digest")
	err := errors.Join(c.each(sources, c.readSources), c.each(blobs, c.readBlob))
	if err == nil {
		err = errors.Join(c.each(sources, c.wrongSources), c.each(blobs, c.wrongBlob))
	}
	return c.problems, err
}

// distributionCheck is one run of check. It reads all files, then compares them.
type distributionCheck struct {
	*distribution
	sources  map[digest.Digest][]digest.Digest // diff ID → blobs, of the files that can be decoded
	layers   map[digest.Digest]digest.Digest   // blob → diff ID, likewise
	problems []overlay.Problem
}

// each calls f for the files of a directory. f returns what is wrong with a file, or "". A path
// gets at most one problem.
func (c *distributionCheck) each(dir string, f func(d digest.Digest, path string) string) error {
	dir = filepath.Join(dir, string(digest.SHA256))
	return eachFile(dir, func(name string) error {
		path := filepath.Join(dir, name)
		id := digest.NewDigestFromEncoded(digest.SHA256, name)
		what := "is not named by a digest"
		if id.Validate() == nil {
			what = f(id, path)
		}
		if what != "" && !slices.ContainsFunc(c.problems, func(p overlay.Problem) bool { return p.Path == path }) {
			c.problems = append(c.problems, overlay.Problem{Path: path, What: what})
		}
		return nil
	})
}

func (c *distributionCheck) readSources(diffID digest.Digest, path string) string {
	var sources []layerSource
	data, err := readFile(path, maxSourcesSize)
	if err != nil || json.Unmarshal(data, &sources) != nil {
		return "is not a list of sources of a layer"
	}
	blobs := make([]digest.Digest, 0, len(sources))
	for _, s := range sources {
		if s.Digest.Validate() != nil {
			return fmt.Sprintf("has the digest %q", s.Digest)
		}
		blobs = append(blobs, s.Digest)
	}
	c.sources[diffID] = blobs
	return ""
}

func (c *distributionCheck) readBlob(blob digest.Digest, path string) string {
	got, err := readFile(path, maxDigestSize)
	if err != nil {
		return err.Error()
	}
	diffID := digest.Digest(got)
	if diffID.Validate() != nil {
		return fmt.Sprintf("holds %q, not a diff ID", got)
	}
	c.layers[blob] = diffID
	return ""
}

// wrongSources returns what is wrong with the sources of a layer. Each blob must be recorded with
// the layer.
func (c *distributionCheck) wrongSources(diffID digest.Digest, _ string) string {
	for _, blob := range c.sources[diffID] {
		if c.layers[blob] != diffID {
			return fmt.Sprintf("blob %s does not lead back to the layer", blob)
		}
	}
	return ""
}

// wrongBlob returns what is wrong with the layer of a blob. The blob must be among the layer's
// sources.
func (c *distributionCheck) wrongBlob(blob digest.Digest, _ string) string {
	diffID, ok := c.layers[blob]
	if ok && !slices.Contains(c.sources[diffID], blob) {
		return fmt.Sprintf("layer %s does not know the blob", diffID)
	}
	return ""
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
