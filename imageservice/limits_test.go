package imageservice

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testcost"
)

// configWith returns the configuration of an image with the layers of b and a number in it, so that
// each is another image.
func configWith(b built, n int, more string) []byte {
	rootfs := must(json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs}))
	return fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","config":{"User":"app","Labels":{"n":"%d"}},"rootfs":%s%s}`, n, rootfs, more)
}

// A pull of an image whose configuration exceeds the limits ends before its layers are fetched, and
// leaves nothing.
func TestPullRefusesOversizedConfig(t *testing.T) {
	e := newEnv(t, nil)
	b := e.build(simple("x"))
	for name, more := range map[string]string{
		"entries": `,"history":[` + testcost.Repeated(`{}`, 500_000) + `]`,
		"bytes":   `,"history":[` + testcost.Repeated(`{}`, 2_500_000) + `]`,
	} {
		config := configWith(b, 0, more)
		bad := e.assemble(b, ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: must(e.registry.PutBlob(config)), Size: int64(len(config))},
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: b.blobs[0], Size: b.sizes[0]}},
		})
		e.push(bad, name, "latest")
		var err error
		cost := testcost.Allocated(func() { _, err = e.service.Pull(t.Context(), PullArgs{Ref: e.ref(name)}) })
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
