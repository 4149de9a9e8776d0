package registry

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testregistry"
)

// Caches serve a document with the other family's media type of the same kind, in other case or
// with parameters. All are one kind.
func TestMediaTypesOfOneKindAreMixedUp(t *testing.T) {
	const unnamed = ""
	manifests := []string{ocispec.MediaTypeImageManifest, dockerManifest}
	indexes := []string{ocispec.MediaTypeImageIndex, dockerManifestList}
	descriptor := func(mediaType string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7}`, mediaType, someDigest)
	}
	bodies := map[kind]string{
		manifestKind: `"config":` + descriptor(ocispec.MediaTypeImageConfig) + `,"layers":[` + descriptor(ocispec.MediaTypeImageLayerGzip) + `]`,
		indexKind:    `"manifests":[` + descriptor(ocispec.MediaTypeImageManifest) + `]`,
	}
	spellings := func(mediaType string) []string {
		return []string{mediaType, strings.ToUpper(mediaType), mediaType + "; charset=utf-8", " " + mediaType + " ;q=1"}
	}
	for k, own := range map[kind][]string{manifestKind: manifests, indexKind: indexes} {
		same, other := manifests, indexes
		if k == indexKind {
			same, other = indexes, manifests
		}
		for _, o := range append(own, unnamed) {
			data := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%s}`, o, bodies[k]))
			for _, served := range same {
				for _, spelling := range spellings(served) {
					if d, err := parseDocument(spelling, data); err != nil || d.isIndex != (k == indexKind) {
						t.Errorf("%q served as %q: index %t, %v", o, spelling, d.isIndex, err)
					}
				}
			}
			for _, served := range other {
				for _, spelling := range spellings(served) {
					if _, err := parseDocument(spelling, data); !errdefs.IsInvalidArgument(err) {
						t.Errorf("%q served as %q: %v", o, spelling, err)
					}
				}
			}
		}
		// A type that servers give to any file leaves it to the document's own, and one of
		// something else does not.
		data := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%s}`, own[0], bodies[k]))
		for _, served := range []string{"text/html", "application/x-thing"} {
			if _, err := parseDocument(served, data); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q served as %q: %v", own[0], served, err)
			}
		}
		for _, served := range []string{"", "Text/Plain", "Application/JSON; charset=utf-8"} {
			if d, err := parseDocument(served, data); err != nil || d.isIndex != (k == indexKind) {
				t.Errorf("%q served as %q: index %t, %v", own[0], served, d.isIndex, err)
			}
		}
	}
	for name, data := range map[string]string{
		"index with layers":           `{"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[],"layers":[]}`,
		"index with layers, untyped":  `{"manifests":[],"layers":[]}`,
		"layers of an index, no more": `{"mediaType":"` + ocispec.MediaTypeImageIndex + `","layers":[]}`,
		"manifest with manifests":     `{"manifests":[],` + bodies[manifestKind] + `}`,
	} {
		if _, err := parseDocument("", []byte(data)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMixedMediaTypesArePulled(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	d, data := e.build(image{content: "x", platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	docker := strings.NewReplacer(ocispec.MediaTypeImageManifest, dockerManifest, ocispec.MediaTypeImageConfig, dockerConfig).Replace(string(data))
	for i, manifest := range []string{string(data), docker} {
		for j, served := range []string{d.MediaType, dockerManifest, "application/VND.OCI.image.manifest.v1+JSON; charset=utf-8"} {
			tag := fmt.Sprintf("%d-%d", i, j)
			e.put(served, []byte(manifest), tag)
			if _, err := e.pull(e.ref("app:"+tag), Auth{}); err != nil {
				t.Errorf("%s served as %s: %v", tag, served, err)
			}
		}
	}
}

func TestLayerTypes(t *testing.T) {
	for mediaType, want := range map[string]bool{
		"application/vnd.oci.image.layer.v1.tar":                       true,
		"application/vnd.oci.image.layer.v1.tar+gzip":                  true,
		"application/vnd.oci.image.layer.v1.tar+zstd":                  true,
		"application/vnd.oci.image.layer.v1.tar+xz":                    true,
		"application/vnd.oci.image.layer.v1.tar+bzip2":                 true,
		"application/vnd.oci.image.layer.v1.tar+unknown":               true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
		"application/vnd.docker.image.rootfs.diff.tar":                 true,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
		"application/vnd.docker.image.rootfs.diff.tar.xz":              true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
		"application/vnd.oci.image.layer.v1.tar+encrypted":             false,
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":        false,
		"application/vnd.oci.image.layer.v1.tar+encrypted+gzip":        false,
		"application/vnd.oci.image.layer.v1.tarball":                   false,
		"application/vnd.docker.image.rootfs.diff.tar.gzip.more":       false,
		"application/vnd.oci.image.config.v1+json":                     false,
		"application/vnd.erofs.layer.v1":                               false,
		"application/vnd.in-toto+json":                                 false,
		"":                                                             false,
	} {
		if isLayerType(mediaType) != want {
			t.Errorf("isLayerType(%q) = %t", mediaType, !want)
		}
		manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q},"layers":[{"mediaType":%q,"digest":%q}]}`,
			strings.ToUpper(ocispec.MediaTypeImageConfig), someDigest, strings.ToUpper(mediaType)+"; x=y", someDigest)
		d, err := parseDocument("", []byte(manifest))
		if (err == nil) != want || want && d.manifest.Layers[0].MediaType != mediaType {
			t.Errorf("in other capitals: %v, %v", d.manifest.Layers, err)
		}
	}
}

// If an index entry names the platform, that entry decides, whatever the configuration says.
func TestPlatformOfConfiguration(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	here, elsewhere := ocispec.Platform{OS: "linux", Architecture: "amd64"}, ocispec.Platform{OS: "linux", Architecture: "arm64"}
	type built struct {
		desc   ocispec.Descriptor
		data   []byte
		config digest.Digest
	}
	build := func(p ocispec.Platform) built {
		d, data := e.build(image{content: "x", platform: p})
		e.put(d.MediaType, data, "")
		return built{d, data, must(parseDocument("", data)).manifest.Config.Digest}
	}
	arm, amd, silent := build(elsewhere), build(here), build(ocispec.Platform{OS: "linux"})
	entry := func(b built, p *ocispec.Platform) ocispec.Descriptor {
		b.desc.Platform = p
		return b.desc
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{
		MediaType: "application/vnd.example.signature", Digest: someDigest, Size: 2,
	}}
	signature := must(json.Marshal(m))
	e.put(m.MediaType, signature, "")
	artifact := built{desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(signature), Size: int64(len(signature))}}
	index := func(tag string, entries ...ocispec.Descriptor) {
		e.put(ocispec.MediaTypeImageIndex, marshalIndex(entries...), tag)
	}
	index("wrong-config", entry(arm, &here))
	index("config-without-architecture", entry(silent, &here))
	index("unnamed-without-architecture", entry(silent, nil))
	index("unnamed-wrong-first", entry(arm, nil), entry(amd, nil))
	index("unnamed-artifact-first", entry(artifact, nil), entry(amd, nil))
	index("only-os", entry(amd, &ocispec.Platform{OS: "linux"}))
	index("named-before-unnamed", entry(amd, nil), entry(arm, &here))
	index("wrong-entry", entry(amd, &elsewhere))
	index("unnamed-wrong", entry(arm, nil))
	index("unnamed-all-wrong", entry(arm, nil), entry(arm, &ocispec.Platform{OS: "linux"}))
	e.put(silent.desc.MediaType, silent.data, "no-index-without-architecture")
	e.put(arm.desc.MediaType, arm.data, "no-index-wrong")
	for tag, want := range map[string]digest.Digest{
		"wrong-config": arm.config, "config-without-architecture": silent.config, "unnamed-without-architecture": silent.config,
		"unnamed-wrong-first": amd.config, "unnamed-artifact-first": amd.config, "only-os": amd.config,
		"named-before-unnamed": arm.config, "no-index-without-architecture": silent.config,
		"wrong-entry": "", "unnamed-wrong": "", "unnamed-all-wrong": "", "no-index-wrong": "",
	} {
		got, err := e.pull(e.ref("app:"+tag), Auth{})
		if want == "" && !errdefs.IsNotFound(err) || want != "" && (err != nil || got != want) {
			t.Errorf("%s: image %q, want %q, %v", tag, got, want, err)
		}
	}
}

// An entry's media type and the one that the registry serves must be of one kind.
func TestIndexEntryOfAnotherKind(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	d, data := e.build(image{content: "x", platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	e.put(d.MediaType, data, "")
	d.MediaType = ocispec.MediaTypeImageIndex
	e.put(ocispec.MediaTypeImageIndex, marshalIndex(d), "latest")
	if _, err := e.pull(e.ref("app"), Auth{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
}
