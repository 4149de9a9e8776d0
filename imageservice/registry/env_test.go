package registry

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/micarun/mica/internal/testregistry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func named(s string) reference.Named {
	return reference.TagNameOnly(must(reference.ParseNormalizedNamed(s)))
}

// env is a client and a registry.
type env struct {
	t        *testing.T
	client   *Client
	registry *testregistry.Registry
	addr     string // of the registry
	certs    string // certs.d directory
}

func newEnv(t *testing.T, auth testregistry.Auth, dockerConfig string) *env {
	t.Helper()
	e := &env{t: t, registry: testregistry.New(testregistry.Options{Auth: auth}), certs: t.TempDir()}
	server, err := e.registry.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = server.Addr
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	e.client = New(Options{
		CertsDirs: []string{e.certs}, DockerConfig: dockerConfig,
		StallTimeout: 5 * time.Second, Attempts: 3, Backoff: time.Millisecond, MaxBackoff: 2 * time.Second,
	})
	return e
}

func (e *env) ref(name string) string { return e.addr + "/" + name }

// configure writes a hosts.toml for the registry that references name.
func (e *env) configure(registry, text string) {
	e.t.Helper()
	dir := filepath.Join(e.certs, registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		e.t.Fatal(err)
	}
}

// image is an image of one layer to put into the registry.
type image struct {
	content   string   // of the layer
	mediaType string   // of the layer; "" is OCI's
	urls      []string // of the layer, which is then not put into the registry
	platform  ocispec.Platform
}

// push puts an image for linux/amd64 into the registry as app:v1.
func (e *env) push(img image) {
	e.t.Helper()
	img.platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	d, data := e.build(img)
	e.put(d.MediaType, data, "v1")
}

// put releases a slot and waits until somebody has it.
func (e *env) put(mediaType string, data []byte, tag string) {
	e.t.Helper()
	if _, err := e.registry.PutManifest("app", tag, mediaType, data); err != nil {
		e.t.Fatal(err)
	}
}

// build puts an image without its manifest into the registry, and returns the manifest.
func (e *env) build(img image) (ocispec.Descriptor, []byte) {
	e.t.Helper()
	layer := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(img.content), Size: int64(len(img.content)), URLs: img.urls,
	}
	if img.mediaType != "" {
		layer.MediaType = img.mediaType
	}
	if img.urls == nil {
		must(e.registry.PutBlob([]byte(img.content)))
	}
	config := must(json.Marshal(ocispec.Image{
		Platform: img.platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{layer}, Config: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: must(e.registry.PutBlob(config)), Size: int64(len(config)),
	}}
	m.SchemaVersion = 2
	data := must(json.Marshal(m))
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data
}

// marshalIndex encodes an index.
func marshalIndex(entries ...ocispec.Descriptor) []byte {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
	index.SchemaVersion = 2
	return must(json.Marshal(index))
}

// pull fetches all of an image and returns the digest of its configuration.
func (e *env) pull(ref string, a Auth) (digest.Digest, error) {
	e.t.Helper()
	repo, err := e.client.Open(named(ref), a)
	if err != nil {
		return "", err
	}
	defer repo.Close()
	p := platforms.Only(platforms.MustParse("linux/amd64"))
	m, err := repo.Resolve(e.t.Context(), p)
	if err != nil {
		return "", err
	}
	config, _, err := repo.Config(e.t.Context(), m, p)
	if err != nil {
		return "", err
	}
	for _, l := range m.Layers {
		if err := repo.Blob(e.t.Context(), l, io.Discard, nil); err != nil {
			return "", err
		}
	}
	return digest.FromBytes(config), nil
}
