package hostile

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is a size just below the daemon's limit for manifests.
const maxManifest = 4<<20 - 16<<10

// manifests attack the decoder of a manifest or an index and the code that follows its references.
func manifests() []Image {
	empty := `{"mediaType":"","digest":"sha256:` + strings.Repeat("0", 64) + `","size":1},`
	return []Image{
		{Name: "index-entries", Quick: true, build: index(maxManifest, empty)},
		{Name: "index-90k-entries", build: index(9<<20, empty)},
		{Name: "index-empty-entries", build: index(maxManifest, "{},")},
		{Name: "index-platforms", build: index(maxManifest, `{"platform":{"os":"s","architecture":"a"},"digest":"sha256:`+strings.Repeat("0", 64)+`"},`)},
		{Name: "index-of-our-platform", build: index(maxManifest, fmt.Sprintf(`{"platform":{"os":"linux","architecture":%q},"digest":"sha256:%064d"},`, runtime.GOARCH, 0))},
		{Name: "manifest-empty-layers", build: manifest(`"config":{},"layers":[`, "{},", "{}]", maxManifest)},
		{Name: "manifest-100k-layers", Quick: true, build: layers(60_000, false)},
		{Name: "layer-10k-times", build: layers(10_000, false)},
		{Name: "layer-480-times", build: layers(480, true)},
		{Name: "layer-of-7mb-480-times", build: layerAgain},
		{Name: "annotations", build: manifestOf(func(m *ocispec.Manifest) { m.Annotations = keys(200_000, "") })},
		{Name: "annotation-large", build: manifestOf(func(m *ocispec.Manifest) {
			m.Annotations = map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": strings.Repeat("a", 3<<20)}
		})},
		{Name: "foreign-urls", Quick: true, build: manifestOf(func(m *ocispec.Manifest) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
			m.Layers[0].URLs = many(250_000, "http://h/%d")
		})},
		{Name: "manifest-nested", build: func(p *parts) error { p.rawManifest = []byte(strings.Repeat("[", maxManifest)); return nil }},
		{Name: "manifest-unknown", build: manifest(`"config":{},"layers":[],"x":[`, "0,", "0]", maxManifest)},
		{Name: "manifest-of-zeros", build: func(p *parts) error { p.rawManifest = make([]byte, 9<<20); return nil }},
	}
}

// fullManifests have as much of everything as the daemon accepts.
func fullManifests() []Image {
	return []Image{
		{Name: "full-index", Quick: true, build: index(maxManifest-8<<10, fmt.Sprintf(`{"platform":{"os":"linux","architecture":"arm"},"digest":"sha256:%064d","annotations":{"x":"%s"}},`, 0, strings.Repeat("x", 4000))), Says: "404|only for"},
		{Name: "full-annotations", build: manifestOf(func(m *ocispec.Manifest) { m.Annotations = keys(most, strings.Repeat("v", 1000)) })},
		{Name: "full-index-unnamed", build: index(1000*100, fmt.Sprintf(`{"digest":"sha256:%064d","size":7},`, 0)), Says: "404"},
	}
}

func manifestOf(change func(*ocispec.Manifest)) func(*parts) error {
	return func(p *parts) error { change(&p.manifest); return nil }
}

// manifest returns text repeated up to size bytes.
func manifest(begin, repeated, end string, size int) func(*parts) error {
	return func(p *parts) error {
		p.rawManifest = fmt.Appendf(nil, `{"schemaVersion":2,%s%s%s}`, begin, strings.Repeat(repeated, size/len(repeated)), end)
		return nil
	}
}

// index returns an index whose entries are text, except for the last one.
func index(size int, entry string) func(*parts) error {
	return func(p *parts) error {
		p.mediaType = ocispec.MediaTypeImageIndex
		last, err := json.Marshal(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("nowhere"), Size: 7})
		p.rawManifest = fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[%s%s]}`, strings.Repeat(entry, size/len(entry)), last)
		return err
	}
}

// layerAgain lists a layer 480 times that takes long to decompress and has no other cost.
func layerAgain(p *parts) error {
	noise := make([]byte, 8<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(noise); err != nil {
		return err
	}
	for i := range noise {
		noise[i] = 'a' + noise[i]%64 // Huffman codes of six bits
	}
	l := hashed().add(item{kind: tar.TypeReg, name: "noise", data: noise}.bytes(), 1).end()
	if err := p.layer(l); err != nil {
		return err
	}
	return layers(479, true)(p)
}

// layers lists the top layer n more times; with matching, also in the configuration.
func layers(n int, matching bool) func(*parts) error {
	return func(p *parts) error {
		top := p.manifest.Layers[len(p.manifest.Layers)-1]
		top.MediaType = ocispec.MediaTypeImageLayer
		id := p.config.RootFS.DiffIDs[len(p.config.RootFS.DiffIDs)-1]
		entry, err := json.Marshal(top)
		if err != nil {
			return err
		}
		n = min(n, (9<<20)/len(entry))
		for range n {
			p.manifest.Layers = append(p.manifest.Layers, top)
			if matching {
				p.config.RootFS.DiffIDs = append(p.config.RootFS.DiffIDs, id)
			}
		}
		return nil
	}
}
