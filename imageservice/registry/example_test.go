package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/testregistry"
)

func ExampleClient_Open() {
	address, stop := serve("the only layer")
	defer stop()
	ctx := context.Background()
	amd64 := platforms.Only(platforms.MustParse("linux/amd64"))

	client := registry.New(registry.Options{})
	ref, err := reference.ParseNormalizedNamed(address + "/app:v1")
	if err != nil {
		log.Fatal(err)
	}
	repo, err := client.Open(ref, registry.Auth{})
	if err != nil {
		log.Fatal(err)
	}
	defer repo.Close()
	manifest, err := repo.Resolve(ctx, amd64)
	if err != nil {
		log.Fatal(err)
	}
	_, config, err := repo.Config(ctx, manifest, amd64)
	if err != nil {
		log.Fatal(err)
	}
	var layer bytes.Buffer
	if err := repo.Blob(ctx, manifest.Layers[0], &layer, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println(config.Architecture, len(manifest.Layers), layer.String())
	// Output: amd64 1 the only layer
}

// serve starts a registry with the image app:v1.
func serve(layer string) (address string, stop func()) {
	r := testregistry.New(testregistry.Options{})
	put := func(mediaType string, data []byte) ocispec.Descriptor {
		d, err := r.PutBlob(data)
		if err != nil {
			log.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			log.Fatal(err)
		}
		return data
	}
	l := put(ocispec.MediaTypeImageLayer, []byte(layer))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{l}}
	m.Config = put(ocispec.MediaTypeImageConfig, encode(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.Digest}},
	}))
	m.SchemaVersion = 2
	if _, err := r.PutManifest("app", "v1", m.MediaType, encode(m)); err != nil {
		log.Fatal(err)
	}
	server, err := r.Start("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return server.Addr, func() { _ = server.Close() }
}
