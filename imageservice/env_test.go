package imageservice

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testregistry"
	"github.com/micarun/mica/overlay"
)

// env is a service on its own store, with its own registry. When the test ends, both stores must be
// consistent and have no unfinished layers.
type env struct {
	t        testing.TB
	root     string
	layers   *overlay.Store
	service  *Service
	registry *testregistry.Registry
	addr     string // of the registry
	opts     Options
}

func newEnv(t testing.TB, change func(*Options)) *env {
	t.Helper()
	return newEnvAt(t, t.TempDir(), testregistry.Auth{}, change)
}

func newEnvAt(t testing.TB, root string, auth testregistry.Auth, change func(*Options)) *env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("extracting layers needs root")
	}
	e := &env{t: t, root: root, registry: testregistry.New(testregistry.Options{Auth: auth})}
	server, err := e.registry.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = server.Addr
	e.opts = Options{
		Root: root, CertsDirs: []string{filepath.Join(root, "certs.d")}, Platform: "linux/amd64",
		StallTimeout: 5 * time.Second, PullTimeout: time.Minute, Attempts: 3, Backoff: time.Millisecond, MaxBackoff: 2 * time.Second,
	}
	if change != nil {
		change(&e.opts)
	}
	e.open()
	t.Cleanup(func() {
		e.verify()
		e.close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *env) open() {
	e.t.Helper()
	ctx := e.t.Context()
	var err error
	if e.layers, err = overlay.Open(ctx, overlay.Options{Root: e.root}); err != nil {
		e.t.Fatal(err)
	}
	if e.service, err = Open(ctx, e.opts, e.layers); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) close() {
	e.t.Helper()
	if err := e.service.Close(); err != nil {
		e.t.Error(err)
	}
	if err := e.layers.Close(); err != nil {
		e.t.Error(err)
	}
}

func (e *env) reopen() {
	e.t.Helper()
	e.close()
	e.open()
}

// verify waits for running pulls, checks both stores, and checks that there are no directories
// other than those of layers.
func (e *env) verify() {
	e.t.Helper()
	e.service.pulls.running.Wait()
	e.service.fetches.running.Wait()
	ctx := e.t.Context()
	if ctx.Err() != nil {
		ctx = backgroundOf(e.t)
	}
	if err := e.layers.SweepAbandoned(ctx); err != nil {
		e.t.Error(err)
	}
	problems, err := e.service.Check(ctx)
	if err != nil {
		e.t.Error(err)
	}
	more, err := e.layers.Check(ctx, overlay.CheckOptions{Content: true})
	if err != nil {
		e.t.Error(err)
	}
	for _, p := range append(problems, more...) {
		e.t.Errorf("%s: %s", p.Path, p.What)
	}
	var want []string
	for _, l := range e.layers.Layers() {
		want = append(want, l.CacheID)
	}
	want = append(want, "l")
	slices.Sort(want)
	var got []string
	for _, entry := range must(os.ReadDir(filepath.Join(e.root, "overlay2"))) {
		got = append(got, entry.Name())
	}
	if !slices.Equal(got, want) {
		e.t.Errorf("overlay2 holds %v, want %v", got, want)
	}
	if entries := must(os.ReadDir(filepath.Join(e.root, "image", "overlay2", "layerdb", "tmp"))); len(entries) > 0 {
		e.t.Errorf("layerdb/tmp holds %v", entries)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// file is an entry of a test layer. A name with a slash at its end makes a directory.
type file struct{ name, content string }

// layerSpec describes a layer to build.
type layerSpec struct {
	files       []file
	compression string // "" is gzip; "zstd", "none"
	mediaType   string // "" fits the compression
	urls        []string
}

// imageSpec describes an image to build.
type imageSpec struct {
	layers   []layerSpec
	platform string // "" is linux/amd64
	docker   bool   // Docker media types instead of OCI's
	config   ocispec.ImageConfig
	created  time.Time
}

// built is an image in a registry.
type built struct {
	config   []byte
	id       digest.Digest
	manifest []byte
	digest   digest.Digest // of the manifest
	desc     ocispec.Descriptor
	blobs    []digest.Digest
	diffIDs  []digest.Digest
	sizes    []int64
}

func simple(content string) imageSpec {
	return imageSpec{layers: []layerSpec{{files: []file{{"etc/", ""}, {"etc/content", content}}}}}
}

func tarOf(files []file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		must(w.Write([]byte(f.content)))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func compress(format string, data []byte) (blob []byte, mediaType string) {
	var b bytes.Buffer
	switch format {
	case "none":
		return data, ocispec.MediaTypeImageLayer
	case "zstd":
		w := must(zstd.NewWriter(&b))
		must(w.Write(data))
		if err := w.Close(); err != nil {
			panic(err)
		}
		return b.Bytes(), ocispec.MediaTypeImageLayerZstd
	}
	w := gzip.NewWriter(&b)
	must(w.Write(data))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes(), ocispec.MediaTypeImageLayerGzip
}

// build puts an image into the registry without a name.
func (e *env) build(spec imageSpec) built {
	e.t.Helper()
	var b built
	var layers []ocispec.Descriptor
	for _, l := range spec.layers {
		tarball := tarOf(l.files)
		blob, mediaType := compress(l.compression, tarball)
		if spec.docker {
			mediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		}
		d := ocispec.Descriptor{MediaType: cmp.Or(l.mediaType, mediaType), Digest: digest.FromBytes(blob), Size: int64(len(blob)), URLs: l.urls}
		if l.urls == nil {
			must(e.registry.PutBlob(blob))
		}
		layers = append(layers, d)
		b.blobs = append(b.blobs, d.Digest)
		b.sizes = append(b.sizes, d.Size)
		b.diffIDs = append(b.diffIDs, digest.FromBytes(tarball))
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: spec.config}
	if os, arch, ok := strings.Cut(spec.platform, "/"); ok {
		config.Platform.OS = os
		config.Platform.Architecture, config.Platform.Variant, _ = strings.Cut(arch, "/")
	}
	config.Created = &spec.created
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs}
	b.config = must(json.MarshalIndent(config, "", " ")) // not the form that encoding it again would give
	b.id = must(e.registry.PutBlob(b.config))
	configType, manifestType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest
	if spec.docker {
		configType = "application/vnd.docker.container.image.v1+json"
		manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	}
	return e.assemble(b, manifestType, ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: configType, Digest: b.id, Size: int64(len(b.config))}, Layers: layers,
	})
}

// assemble encodes a manifest without checking it.
func (e *env) assemble(b built, mediaType string, m ocispec.Manifest) built {
	m.SchemaVersion, m.MediaType = 2, mediaType
	b.manifest = must(json.Marshal(m))
	b.digest = digest.FromBytes(b.manifest)
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	b.desc = ocispec.Descriptor{MediaType: mediaType, Digest: b.digest, Size: int64(len(b.manifest)), Platform: &platform}
	return b
}

// push names an image in the registry.
func (e *env) push(b built, repo, tag string) built {
	e.t.Helper()
	if _, err := e.registry.PutManifest(repo, tag, b.desc.MediaType, b.manifest); err != nil {
		e.t.Fatal(err)
	}
	return b
}

func (e *env) ref(name string) string { return e.addr + "/" + name }

func (e *env) pull(name string) Image {
	e.t.Helper()
	img, err := e.service.Pull(e.t.Context(), PullArgs{Ref: e.ref(name)})
	if err != nil {
		e.t.Fatal(err)
	}
	return img
}

// requests counts the requests with a method and a part of a path.
func (e *env) requests(method, path string) int {
	n := 0
	for _, r := range e.registry.Requests() {
		if r.Method == method && strings.Contains(r.Path, path) {
			n++
		}
	}
	return n
}

// marshalIndex encodes an index.
func marshalIndex(entries []ocispec.Descriptor) ([]byte, error) {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
	index.SchemaVersion = 2
	return json.Marshal(index)
}
