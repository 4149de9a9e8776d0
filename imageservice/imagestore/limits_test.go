package imagestore

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testcost"
)

// configWith returns the configuration of an image with the layers of b and a number in it, so that
// each is another image.
func configWith(b built, n int, more string) []byte {
	rootfs := must(json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs}))
	return fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","config":{"User":"app","Labels":{"n":"%d"}},"rootfs":%s%s}`, n, rootfs, more)
}

// write writes a configuration as another engine leaves it in its data root.
func (e *env) write(config []byte) digest.Digest {
	e.t.Helper()
	id := digest.FromBytes(config)
	if err := os.WriteFile(e.path("imagedb/content/sha256/"+id.Encoded()), config, 0o600); err != nil {
		e.t.Fatal(err)
	}
	return id
}

// readBytes returns the number of bytes that this process has read from files so far.
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
// and keeps an amount that does not depend on their size.
func TestStartKeepsLittleOfEachImage(t *testing.T) {
	const images, size = 1000, 32 << 10
	e := newEnv(t)
	b := e.add("example.org/img", "x")
	history := `,"history":[` + testcost.Repeated(`{"created_by":"RUN something of some length"}`, size/46) + `]`
	repos := e.store.repos.clone()
	for i := range images {
		id := e.write(configWith(b, i, history))
		repos.set(must(ParseReference(fmt.Sprintf("example.org/img:%d", i))), id)
	}
	if err := repos.save(e.path("repositories.json")); err != nil {
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
	cost := testcost.Allocated(e.open)
	read = readBytes(t) - read
	if kept := (heap() - before) / images; kept > 2<<10 {
		t.Errorf("%d bytes of memory for each image", kept)
	}
	if got := len(e.store.List()); got != images+1 {
		t.Fatalf("%d images", got)
	}
	if limit := images*size*5/4 + 1<<20; read > limit {
		t.Errorf("%d bytes read, more than %d", read, limit)
	}
	if limit := uint64(images * size * 3); cost > limit {
		t.Errorf("%d bytes allocated, more than %d", cost, limit)
	}
	img := must(e.store.Get("example.org/img:7"))
	if len(img.Tags) != 1 || img.Tags[0] != "example.org/img:7" || img.User != "app" {
		t.Errorf("image %+v", img)
	}
}

func BenchmarkOpenWithManyImages(b *testing.B) {
	e := newEnv(b)
	image := e.add("example.org/img", "x")
	for i := range 1000 {
		e.write(configWith(image, i, `,"history":[`+testcost.Repeated(`{"created_by":"RUN something of some length"}`, 200)+`]`))
	}
	for b.Loop() {
		if _, err := Open(b.Context(), Options{Root: e.root}, e.layers); err != nil {
			b.Fatal(err)
		}
	}
	e.reopen()
}

// An image of an adopted data root that exceeds the limits is left out and reported. Its files and
// layers stay until it is removed.
func TestStartLeavesOversizedImagesAlone(t *testing.T) {
	for name, more := range map[string]string{
		"too many entries": `,"history":[` + testcost.Repeated(`{}`, 100_000) + `]`,
		"too large":        `,"x":"` + strings.Repeat("x", 3<<20) + `"`,
		"far too large":    `,"x":"` + strings.Repeat("x", 40<<20) + `"`,
		"ambiguous":        `,"RootFS":{}`,
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			b := e.add("example.org/img", "its layer")
			id := e.write(configWith(b, 0, more))
			e.reopen()
			if _, err := e.store.Get(id.String()); !errdefs.IsNotFound(err) {
				t.Errorf("the image is found: %v", err)
			}
			problems, err := e.store.Check(t.Context())
			if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Path, id.Encoded()) {
				t.Errorf("problems %v, %v", problems, err)
			}
			other := e.add("example.org/other", "another")
			for _, ref := range []string{"example.org/img", "example.org/other"} {
				if err := e.store.Remove(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := e.layers.Layer(ChainIDs(b.diffIDs)[0]); err != nil {
				t.Errorf("its layer is gone: %v", err)
			}
			if _, err := os.Stat(e.path("imagedb/content/sha256/" + id.Encoded())); err != nil {
				t.Error(err)
			}
			if err := e.store.Remove(t.Context(), id.String()); err != nil {
				t.Fatal(err)
			}
			for _, gone := range []built{b, other} {
				if _, err := e.layers.Layer(ChainIDs(gone.diffIDs)[0]); err == nil {
					t.Errorf("layer %s is still there", gone.diffIDs[0])
				}
			}
		})
	}
}

// A registry that gives one image a new manifest at each pull does not make the node's records grow
// without bound.
func TestDigestsOfAnImageAreBounded(t *testing.T) {
	e := newEnv(t)
	b := e.add("example.org/img", "x")
	for i := range maxDigests + 10 {
		b.manifest = digest.FromString(strconv.Itoa(i))
		e.record(b, "example.org/img")
		if _, err := e.store.Get("example.org/img@" + b.manifest.String()); err != nil {
			t.Fatalf("the newest digest is not kept: %v", err)
		}
	}
	img := must(e.store.Get(b.id.String()))
	if len(img.Digests) != maxDigests || len(img.Tags) != 1 {
		t.Errorf("%d digests, %d tags", len(img.Digests), len(img.Tags))
	}
}
