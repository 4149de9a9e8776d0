package imagestore

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/micarun/mica/overlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// env is an image store on a layer store. Both must be consistent when the test ends.
type env struct {
	t      testing.TB
	root   string
	layers *overlay.Store
	store  *Store
}

func newEnv(t testing.TB) *env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("extracting layers needs root")
	}
	e := &env{t: t, root: t.TempDir()}
	e.open()
	t.Cleanup(func() {
		if problems, err := e.store.Check(context.WithoutCancel(t.Context())); err != nil || len(problems) > 0 {
			t.Errorf("at the end: problems %v, %v", problems, err)
		}
		e.close()
	})
	return e
}

func (e *env) open() {
	e.t.Helper()
	var err error
	if e.layers, err = overlay.Open(e.t.Context(), overlay.Options{Root: e.root}); err != nil {
		e.t.Fatal(err)
	}
	if e.store, err = Open(e.t.Context(), Options{Root: e.root}, e.layers); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) close() {
	e.t.Helper()
	if err := e.layers.Close(); err != nil {
		e.t.Error(err)
	}
}

func (e *env) reopen() {
	e.t.Helper()
	e.close()
	e.open()
}

// path returns a path below the directory of the image store.
func (e *env) path(name string) string { return filepath.Join(e.root, "image", "overlay2", name) }

// built is an image in the store.
type built struct {
	config   []byte
	id       digest.Digest
	manifest digest.Digest
	diffIDs  []digest.Digest
	blobs    []digest.Digest
}

// add adds an image, whose layers have one file each, by a name, and the sources of its layers.
func (e *env) add(name string, contents ...string) built {
	e.t.Helper()
	var b built
	tars := make([][]byte, len(contents))
	for i, content := range contents {
		tars[i] = tarOf(content)
		b.diffIDs = append(b.diffIDs, digest.FromBytes(tars[i]))
		b.blobs = append(b.blobs, digest.FromString("blob of "+content))
	}
	defer e.layers.Reserve(ChainIDs(b.diffIDs)...)()
	e.commit(tars)
	b.config = must(json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs},
	}))
	b.id, b.manifest = digest.FromBytes(b.config), digest.FromString("manifest of "+string(b.config))
	var sources []LayerSource
	for i := range contents {
		sources = append(sources, LayerSource{DiffID: b.diffIDs[i], Blob: b.blobs[i], Repository: "docker.io/library/x"})
	}
	if err := e.store.AddSources(sources...); err != nil {
		e.t.Fatal(err)
	}
	e.record(b, name)
	return b
}

func (e *env) record(b built, name string) Image {
	e.t.Helper()
	img, err := e.store.Record(RecordArgs{Config: b.config, Ref: must(ParseReference(name)), Manifest: b.manifest})
	if err != nil {
		e.t.Fatal(err)
	}
	return img
}

// commit adds the missing layers of an image, base first.
func (e *env) commit(tars [][]byte) {
	e.t.Helper()
	var diffIDs []digest.Digest
	for _, data := range tars {
		diffIDs = append(diffIDs, digest.FromBytes(data))
	}
	var parent digest.Digest
	for i, chain := range ChainIDs(diffIDs) {
		if _, err := e.layers.Layer(chain); err != nil {
			draft, err := e.layers.Apply(e.t.Context(), bytes.NewReader(tars[i]))
			if err != nil {
				e.t.Fatal(err)
			}
			must(e.layers.Commit(e.t.Context(), parent, draft))
		}
		parent = chain
	}
}

func tarOf(content string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		panic(err)
	}
	must(w.Write([]byte(content)))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
