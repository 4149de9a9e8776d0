// Package hostile makes images and archives that cost far more memory or processor time than their
// size suggests. Each is at most [MaxBytes] as a registry serves it.
//
// Each image attacks one limit of the daemon. The end-to-end tests pull it, run a container of it,
// restart the daemon with it, and measure the cost. The images are generated: none is in the
// repository, and no generator needs more than a few hundred megabytes or a few seconds.
//
// Some images have wrong diff IDs, because hashing their content would take the generator too long.
// The daemon may reject such an image for that.
package hostile

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxBytes is the size of the largest image, all blobs and manifests together.
const MaxBytes = 10 << 20

// Store stores the parts of an image. A testregistry.Registry is one.
type Store interface {
	PutBlob(data []byte) (digest.Digest, error)
	PutManifest(repo, tag, mediaType string, data []byte) (digest.Digest, error)
}

// Base is a small image whose layers are below the hostile ones, so that the containers have a
// program to run.
type Base struct {
	Layers  []ocispec.Descriptor // already in the Store
	DiffIDs []digest.Digest
}

// Image is one attack.
type Image struct {
	Name string // the image's tag and the test's name
	// Quick includes the case in the short run: it is the most expensive of its kind.
	Quick bool
	// User is the user of the image's container; "" uses the image's own.
	User string
	// Says is a regular expression for an error that need not name a limit.
	Says string
	// Volume mounts the image as a volume, too.
	Volume bool

	build func(*parts) error
}

// parts is an image under construction.
type parts struct {
	store    Store
	manifest ocispec.Manifest
	config   ocispec.Image
	bytes    int // stored so far

	// rawConfig and rawManifest replace the encoded ones.
	rawConfig, rawManifest []byte
	mediaType              string // media type of rawManifest
}

// Repository is the repository in which Put stores images, with their names as tags.
const Repository = "hostile/image"

// Put generates the image into the store.
func (i Image) Put(store Store, base Base) error {
	p := &parts{store: store, mediaType: ocispec.MediaTypeImageManifest}
	p.config = ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"true"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: append([]digest.Digest(nil), base.DiffIDs...)},
		Author:   i.Name, // no two images have the same ID
	}
	p.manifest = ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: p.mediaType,
		Layers: append([]ocispec.Descriptor(nil), base.Layers...),
	}
	if err := i.build(p); err != nil {
		return fmt.Errorf("make hostile image %s: %w", i.Name, err)
	}
	if err := p.finish(i.Name); err != nil {
		return fmt.Errorf("make hostile image %s: %w", i.Name, err)
	}
	return nil
}

func (p *parts) finish(tag string) error {
	config := p.rawConfig
	if config == nil {
		var err error
		if config, err = json.Marshal(p.config); err != nil {
			return err
		}
	}
	var err error
	if p.manifest.Config, err = p.put(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	data := p.rawManifest
	if data == nil {
		if data, err = json.Marshal(p.manifest); err != nil {
			return err
		}
	}
	if p.bytes += len(data); p.bytes > MaxBytes {
		return fmt.Errorf("it has %d bytes, more than %d", p.bytes, MaxBytes)
	}
	_, err = p.store.PutManifest(Repository, tag, p.mediaType, data)
	return err
}

// put stores a blob.
func (p *parts) put(mediaType string, data []byte) (ocispec.Descriptor, error) {
	p.bytes += len(data)
	d, err := p.store.PutBlob(data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

// layer stores a layer on top of the existing ones.
func (p *parts) layer(l packed) error {
	d, err := p.put(ocispec.MediaTypeImageLayerGzip, l.data)
	p.manifest.Layers = append(p.manifest.Layers, d)
	p.config.RootFS.DiffIDs = append(p.config.RootFS.DiffIDs, l.diffID)
	return err
}

// layered returns an image with one more layer.
func layered(make func() packed) func(*parts) error {
	return func(p *parts) error { return p.layer(make()) }
}

// Images returns all attacks with images.
func Images() []Image {
	var all []Image
	for _, kind := range [][]Image{configs(), fullConfigs(), manifests(), fullManifests(), entries(), headers(), streams(), users()} {
		all = append(all, kind...)
	}
	return all
}
