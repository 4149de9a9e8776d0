package imageservice

import (
	"bytes"
	"encoding/base64"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/decompress"
)

// The same tar, with a file etc/content that holds "xz", by `xz -6` and by bzip2.
const (
	xzLayer    = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AGBdADKdCIYUP4Cj768UjzWjcp0pHdiVxVJPunR4siz8FIYOTl7KcsvDYQyh16RUNQ6/+AHPvin/JIZS+xq7O/Gvs+5PKH42r9IGTaQ4Z5U81vTn6QPU8SstCmujL3doKb7wAADjuZrz51lMhAABfIBQAAAAV6ZexbHEZ/sCAAAAAARZWg=="
	bzip2Layer = "QlpoOTFBWSZTWaJVJNEAAG9bgMmAQAD3AAIAagGeUAgIIABUMoENMTExNqYJJEGTTIBiH1YDkIPcAQibVpApKOSBDAx1N4nsI4cRQME+6scaCqn3+jhMpwtNakSQNi7kinChIUSqSaI="
)

func fromBase64(s string) []byte { return must(base64.StdEncoding.DecodeString(s)) }

// Layers compressed with xz or bzip2, or by pzstd, are pulled whatever their media type, as by
// dockerd.
func TestPullOfOtherCompressions(t *testing.T) {
	e := newEnv(t, nil)
	xz, bzip2 := fromBase64(xzLayer), fromBase64(bzip2Layer)
	stream := must(decompress.NewPool().Open(t.Context(), bytes.NewReader(xz), int64(len(xz))))
	tarball := must(io.ReadAll(stream))
	stream.Close()
	zstd, _ := compress("zstd", tarball)
	for name, blob := range map[string][]byte{
		"xz": xz, "bzip2": bzip2, "pzstd": append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00hint"), zstd...),
	} {
		b := e.build(simple("x"))
		b.config = bytes.ReplaceAll(b.config, []byte(b.diffIDs[0]), []byte(digest.FromBytes(tarball)))
		b.id = must(e.registry.PutBlob(b.config))
		e.push(e.assemble(b, ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: b.id, Size: int64(len(b.config))},
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: must(e.registry.PutBlob(blob)), Size: int64(len(blob))}},
		}), "app", name)
		img, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:" + name)})
		if err != nil || img.ID != b.id {
			t.Errorf("%s: %v, %v", name, img.ID, err)
			continue
		}
		if err := e.service.Remove(t.Context(), img.ID.String()); err != nil {
			t.Error(err)
		}
	}
}
