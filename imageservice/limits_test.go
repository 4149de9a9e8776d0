package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testregistry"
)

// repeated returns text n times with commas in between.
func repeated(text string, n int) string {
	return strings.TrimSuffix(strings.Repeat(text+",", n), ",")
}

// allocated returns how many bytes f allocates, whether or not they are freed since.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// configWith returns the configuration of an image with the layers of b and a number in it, so that
// each is another image.
func configWith(b built, n int, more string) []byte {
	rootfs := must(json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs}))
	return fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","config":{"User":"app","Labels":{"n":"%d"}},"rootfs":%s%s}`, n, rootfs, more)
}

// store writes an image as dockerd leaves one in its data root.
func (e *env) store(config []byte) digest.Digest {
	e.t.Helper()
	id := digest.FromBytes(config)
	if err := os.WriteFile(filepath.Join(e.service.db.contentDir(), id.Encoded()), config, 0o600); err != nil {
		e.t.Fatal(err)
	}
	return id
}

// readBytes returns how many bytes this process has read from files so far.
func readBytes(t testing.TB) int {
	t.Helper()
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/io")))) {
		if n, ok := strings.CutPrefix(line, "rchar: "); ok {
			return must(strconv.Atoi(strings.TrimSpace(n)))
		}
	}
	t.Fatal("/proc/self/io has no rchar")
	return 0
}

// A start with a thousand images reads each configuration once, allocates in proportion to them,
// and keeps what does not depend on their size.
func TestStartKeepsLittleOfEachImage(t *testing.T) {
	const images, size = 1000, 32 << 10
	e := newEnv(t, nil)
	b := e.push(e.build(simple("x")), "img", "latest")
	e.pull("img")
	history := `,"history":[` + repeated(`{"created_by":"RUN something of some length"}`, size/46) + `]`
	for i := range images {
		e.store(configWith(b, i, history))
	}
	repos := e.service.repos.clone()
	for i := range images {
		id := digest.FromBytes(configWith(b, i, history))
		repos.set(must(parseReference(e.ref(fmt.Sprintf("img:%d", i)))), id)
	}
	if err := repos.save(e.service.repositoriesPath()); err != nil {
		t.Fatal(err)
	}
	e.close()
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, read := heap(), readBytes(t)
	cost := allocated(e.open)
	read = readBytes(t) - read
	if kept := (heap() - before) / images; kept > 2<<10 {
		t.Errorf("%d bytes of memory for each image", kept)
	}
	if got := len(e.service.List()); got != images+1 {
		t.Fatalf("%d images", got)
	}
	if limit := images*size*5/4 + 1<<20; read > limit {
		t.Errorf("%d bytes read, more than %d", read, limit)
	}
	if limit := uint64(images * size * 3); cost > limit {
		t.Errorf("%d bytes allocated, more than %d", cost, limit)
	}
	info := e.service.images[digest.FromBytes(configWith(b, 7, history))]
	if len(info.Tags) != 1 || info.Tags[0] != e.ref("img:7") || info.User != "app" {
		t.Errorf("image %+v", info)
	}
}

func BenchmarkStartWithManyImages(b *testing.B) {
	e := newEnvAt(b, b.TempDir(), testregistry.Auth{}, nil)
	image := e.push(e.build(simple("x")), "img", "latest")
	e.pull("img")
	for i := range 1000 {
		e.store(configWith(image, i, `,"history":[`+repeated(`{"created_by":"RUN something of some length"}`, 200)+`]`))
	}
	e.close()
	for b.Loop() {
		s, err := Open(context.Background(), e.opts, e.layers)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	e.open()
}

// An image of an adopted data root that is over the limits is left out and reported. Its files and
// layers stay until someone removes it.
func TestStartLeavesOversizedImagesAlone(t *testing.T) {
	for name, more := range map[string]string{
		"too many entries": `,"history":[` + repeated(`{}`, 100_000) + `]`,
		"too large":        `,"x":"` + strings.Repeat("x", 3<<20) + `"`,
		"far too large":    `,"x":"` + strings.Repeat("x", 40<<20) + `"`,
		"ambiguous":        `,"RootFS":{}`,
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, nil)
			b := e.push(e.build(simple("its layer")), "img", "latest")
			other := e.push(e.build(simple("another")), "other", "latest")
			e.pull("img")
			id := e.store(configWith(b, 0, more))
			if err := e.service.Remove(t.Context(), e.ref("img")); err != nil {
				t.Fatal(err)
			}
			// The service has not seen the oversized image yet, so it has removed the layer.
			e.pull("img")
			e.reopen()
			if _, err := e.service.Get(id.String()); !errdefs.IsNotFound(err) {
				t.Errorf("the image is found: %v", err)
			}
			problems, err := e.service.Check(t.Context())
			if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Path, id.Encoded()) {
				t.Errorf("problems %v, %v", problems, err)
			}
			e.pull("other")
			for _, ref := range []string{"img", "other"} {
				if err := e.service.Remove(t.Context(), e.ref(ref)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := e.layers.Layer(chainIDs(b.diffIDs)[0]); err != nil {
				t.Errorf("its layer is gone: %v", err)
			}
			if _, err := os.Stat(filepath.Join(e.service.db.contentDir(), id.Encoded())); err != nil {
				t.Error(err)
			}
			if err := e.service.Remove(t.Context(), id.String()); err != nil {
				t.Fatal(err)
			}
			for _, gone := range []built{b, other} {
				if _, err := e.layers.Layer(chainIDs(gone.diffIDs)[0]); err == nil {
					t.Errorf("layer %s is still there", gone.diffIDs[0])
				}
			}
		})
	}
}

// A registry that gives one image a new manifest at each pull does not make the node's records grow
// for ever.
func TestDigestsOfAnImageAreBounded(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(simple("x")), "img", "latest")
	img := e.pull("img")
	for i := range maxDigests + 10 {
		ref := must(withDigest(must(parseReference(e.ref("img"))), digest.FromString(strconv.Itoa(i))))
		if _, err := e.service.record(imageFacts{config: b.config}, ref); err != nil {
			t.Fatal(err)
		}
		if _, err := e.service.Get(ref.String()); err != nil {
			t.Fatalf("the newest digest is not kept: %v", err)
		}
	}
	img = must(e.service.Get(img.ID.String()))
	if len(img.Digests) != maxDigests || len(img.Tags) != 1 {
		t.Errorf("%d digests, %d tags", len(img.Digests), len(img.Tags))
	}
}

// A pull of an image with a configuration over the limits ends before its layers are fetched, and
// leaves nothing.
func TestPullRefusesOversizedConfig(t *testing.T) {
	e := newEnv(t, nil)
	b := e.build(simple("x"))
	for name, more := range map[string]string{
		"entries": `,"history":[` + repeated(`{}`, 500_000) + `]`,
		"bytes":   `,"history":[` + repeated(`{}`, 2_500_000) + `]`,
	} {
		config := configWith(b, 0, more)
		bad := e.assemble(b, ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: must(e.registry.PutBlob(config)), Size: int64(len(config))},
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: b.blobs[0], Size: b.sizes[0]}},
		})
		e.push(bad, name, "latest")
		var err error
		cost := allocated(func() { _, err = e.service.Pull(t.Context(), PullArgs{Ref: e.ref(name)}) })
		if !errdefs.IsOutOfRange(err) {
			t.Errorf("%s: %v", name, err)
		}
		if cost > 16<<20 {
			t.Errorf("%s: the pull cost %d bytes of memory", name, cost)
		}
	}
	if n := e.requests("GET", "/blobs/"+b.blobs[0].String()); n != 0 {
		t.Errorf("%d requests for the layer", n)
	}
}
