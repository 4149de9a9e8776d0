package testimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// recipe is part of every key. Increment it when the builder writes other bytes for the same
// description.
const recipe = "2"

// Store stores blobs and manifests. A testregistry.Registry with a directory is one.
type Store interface {
	PutBlobFrom(r io.Reader) (digest.Digest, error)
	PutManifest(repo, tag, mediaType string, data []byte) (digest.Digest, error)
}

// Options are the options of a Builder. All are required.
type Options struct {
	// Dir is the directory of fetched packages and of the list of built layers.
	Dir string
	// Root is the root directory of this module, for File.C.
	Root string
	// Store belongs to Dir: it must still hold everything that earlier Builders of the same Dir
	// stored.
	Store Store
}

// Builder builds images. It must not be used concurrently, but several builders may share a
// directory, even from several processes.
type Builder struct {
	options Options
	apt     *apt
	lock    *os.File
}

// Open opens a builder. It waits until no other builder works in its directory, and returns ctx's
// error if that takes too long.
func Open(ctx context.Context, options Options) (*Builder, error) {
	if err := os.MkdirAll(filepath.Join(options.Dir, "layers"), 0o755); err != nil {
		return nil, fmt.Errorf("open image builder: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(options.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open image builder: %w", err)
	}
	apt, err := newApt(filepath.Join(options.Dir, "debs"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image builder: %w", err), lock.Close())
	}
	return &Builder{options: options, apt: apt, lock: lock}, nil
}

// Close releases the directory for the next builder.
func (b *Builder) Close() error { return b.lock.Close() }

// Build builds one image and stores it under all its names.
func (b *Builder) Build(ctx context.Context, image Image) (Built, error) {
	if err := image.validate(); err != nil {
		return Built{}, err
	}
	built := Built{Names: image.Names}
	key := digest.FromString(recipe)
	var below []string // packages of the layers so far
	for n, layer := range image.Layers {
		if layer.Compression == "" {
			layer.Compression = Gzip
		}
		packed, err := b.layer(ctx, layer, &key, &below)
		if err != nil {
			return Built{}, fmt.Errorf("build image %s: layer %d: %w", image.Names[0], n, err)
		}
		if packed.Descriptor.MediaType, err = layer.Compression.mediaType(image.Docker); err != nil {
			return Built{}, fmt.Errorf("build image %s: layer %d: %w", image.Names[0], n, err)
		}
		built.Layers = append(built.Layers, packed.Descriptor)
		built.DiffIDs = append(built.DiffIDs, packed.DiffID)
	}
	if err := b.manifest(image, &built); err != nil {
		return Built{}, fmt.Errorf("build image %s: %w", image.Names[0], err)
	}
	return built, nil
}

// packedLayer is the content of layers/<key>.json.
type packedLayer struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
}

// layer returns the packed layer. It builds the layer unless an earlier run did. It advances key
// and below to the layer.
func (b *Builder) layer(ctx context.Context, layer Layer, key *digest.Digest, below *[]string) (packedLayer, error) {
	next, err := b.key(*key, layer)
	if err != nil {
		return packedLayer{}, err
	}
	files, err := b.packages(ctx, layer, below)
	if err != nil {
		return packedLayer{}, err
	}
	*key = next
	record := filepath.Join(b.options.Dir, "layers", key.Encoded()+".json")
	var packed packedLayer
	if data, err := os.ReadFile(record); err == nil && json.Unmarshal(data, &packed) == nil {
		return packed, nil
	}
	if packed, err = b.pack(ctx, layer, files); err != nil {
		return packedLayer{}, err
	}
	data, err := json.Marshal(packed)
	if err != nil {
		return packedLayer{}, err
	}
	if err := os.WriteFile(record+".new", data, 0o644); err != nil {
		return packedLayer{}, fmt.Errorf("record layer: %w", err)
	}
	return packed, os.Rename(record+".new", record)
}

// key derives a layer's name from everything that its bytes depend on.
func (b *Builder) key(below digest.Digest, layer Layer) (digest.Digest, error) {
	description, err := json.Marshal(layer)
	if err != nil {
		return "", fmt.Errorf("describe layer: %w", err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s\n", below, description)
	for _, file := range layer.Files {
		name := file.Host
		if file.C != "" {
			name = filepath.Join(b.options.Root, file.C)
		}
		if name == "" {
			continue
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("read source: %w", err)
		}
		fmt.Fprintf(sum, "%s %x\n", file.C, sha256.Sum256(content))
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// packages returns the package files of the layer: all packages up to it with their dependencies,
// without those of the layers below.
func (b *Builder) packages(ctx context.Context, layer Layer, below *[]string) ([]string, error) {
	all, err := b.closure(ctx, layer.Packages)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, file := range all {
		name := packageName(file)
		if slices.Contains(*below, name) || layer.Only && !slices.Contains(layer.Packages, name) {
			continue
		}
		*below = append(*below, name)
		files = append(files, file)
	}
	return files, nil
}

// closure caches apt's closure: debs/<key>.list holds the files.
func (b *Builder) closure(ctx context.Context, packages []string) ([]string, error) {
	record := filepath.Join(b.apt.dir, digest.FromString(strings.Join(packages, " ")).Encoded()+".list")
	if data, err := os.ReadFile(record); err == nil {
		return strings.Fields(string(data)), nil
	}
	files, err := b.apt.closure(ctx, packages)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(record, []byte(strings.Join(files, "\n")), 0o644); err != nil {
		return nil, fmt.Errorf("record package list: %w", err)
	}
	return files, nil
}

// pack writes the layer's tar stream, compressed, into the store.
func (b *Builder) pack(ctx context.Context, layer Layer, debs []string) (packedLayer, error) {
	scratch, err := os.MkdirTemp("", "mica-image-")
	if err != nil {
		return packedLayer{}, fmt.Errorf("make scratch directory: %w", err)
	}
	defer os.RemoveAll(scratch)
	reader, writer := io.Pipe()
	diffID := digest.SHA256.Digester()
	go func() {
		writer.CloseWithError(b.write(ctx, writer, diffID.Hash(), layerJob{layer, debs, scratch}))
	}()
	counter := &countingReader{in: reader}
	blob, err := b.options.Store.PutBlobFrom(counter)
	// Also ends the writer if the store has failed.
	reader.CloseWithError(errors.Join(errors.New("store closed"), err))
	if err != nil {
		return packedLayer{}, err
	}
	return packedLayer{ocispec.Descriptor{Digest: blob, Size: counter.n}, diffID.Digest()}, nil
}

type layerJob struct {
	layer   Layer
	debs    []string
	scratch string
}

func (b *Builder) write(ctx context.Context, out io.Writer, sum hash.Hash, job layerJob) error {
	packer, err := compressor(out, job.layer.Compression)
	if err != nil {
		return err
	}
	w := &layerWriter{
		tar:     tar.NewWriter(io.MultiWriter(packer, sum)),
		scratch: job.scratch, root: b.options.Root, dirs: map[string]bool{},
	}
	for _, deb := range job.debs {
		if err := w.packageFiles(ctx, deb); err != nil {
			return err
		}
		if job.layer.Applets && strings.HasPrefix(packageName(deb), "busybox") {
			if err := w.applets(ctx, deb); err != nil {
				return err
			}
		}
	}
	for _, file := range job.layer.Files {
		if err := w.parents(strings.TrimPrefix(filepath.Clean(file.Path), "/")); err != nil {
			return err
		}
		if err := w.file(ctx, file); err != nil {
			return err
		}
	}
	return errors.Join(w.tar.Close(), packer.Close())
}

func compressor(out io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		return zstd.NewWriter(out)
	case Uncompressed:
		return nopCloser{out}, nil
	default:
		return gzip.NewWriter(out), nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type countingReader struct {
	in io.Reader
	n  int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.n += int64(n)
	return n, err
}

// manifest stores config and manifest, and the index if the image has one.
func (b *Builder) manifest(image Image, built *Built) error {
	created := epoch()
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   image.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: built.DiffIDs},
	}
	for n := range image.Layers {
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", n)})
	}
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("describe config: %w", err)
	}
	if built.ID, err = b.options.Store.PutBlobFrom(strings.NewReader(string(data))); err != nil {
		return fmt.Errorf("store config: %w", err)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: built.ID, Size: int64(len(data))},
		Layers:    built.Layers,
	}
	if image.Docker {
		manifest.MediaType, manifest.Config.MediaType = dockerManifest, dockerConfig
	}
	if built.Manifest, err = b.put(image.Names, manifest.MediaType, manifest, image.Index); err != nil {
		return err
	}
	if !image.Index {
		return nil
	}
	built.Manifest, err = b.index(image, built.Manifest)
	return err
}

// index stores an index of the manifest and of one for another platform. That one does not exist,
// so clients must not request it.
func (b *Builder) index(image Image, manifest ocispec.Descriptor) (ocispec.Descriptor, error) {
	foreign := manifest
	foreign.Digest = digest.FromString("foreign " + manifest.Digest.String())
	foreign.Platform = &ocispec.Platform{Architecture: "s390x", OS: "linux"}
	manifest.Platform = &ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{foreign, manifest},
	}
	if image.Docker {
		index.MediaType = dockerIndex
	}
	return b.put(image.Names, index.MediaType, index, false)
}

// put stores a manifest or index in every repository of names, by digest only or tagged.
func (b *Builder) put(names []string, mediaType string, v any, untagged bool) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("describe manifest: %w", err)
	}
	descriptor := ocispec.Descriptor{MediaType: mediaType, Size: int64(len(data))}
	for _, name := range names {
		colon := strings.LastIndex(name, ":")
		repo, tag := name[:colon], name[colon+1:]
		if untagged {
			tag = ""
		}
		if descriptor.Digest, err = b.options.Store.PutManifest(repo, tag, mediaType, data); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("store manifest: %w", err)
		}
	}
	return descriptor, nil
}

// lockFile takes the lock. It waits for another holder.
func lockFile(ctx context.Context, name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), file.Close())
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, ctx.Err()), file.Close())
		}
	}
}
