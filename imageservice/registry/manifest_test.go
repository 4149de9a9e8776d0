package registry

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/imageconfig"
	"github.com/micarun/mica/internal/testcost"
)

func TestParseDocument(t *testing.T) {
	desc := func(mediaType string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7}`, mediaType, someDigest)
	}
	config, layer := desc(ocispec.MediaTypeImageConfig), desc(ocispec.MediaTypeImageLayerGzip)
	manifest := func(config, layers string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s]}`, config, layers)
	}
	plain := manifest(config, layer)
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]}`, desc(ocispec.MediaTypeImageManifest))
	for name, c := range map[string]struct{ mediaType, data, wantErr string }{
		"oci":                {ocispec.MediaTypeImageManifest, plain, ""},
		"docker":             {dockerManifest, manifest(desc(dockerConfig), desc("application/vnd.docker.image.rootfs.diff.tar.gzip")), ""},
		"foreign":            {dockerManifest, manifest(desc(dockerConfig), desc("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), ""},
		"zstd":               {ocispec.MediaTypeImageManifest, manifest(config, desc(ocispec.MediaTypeImageLayerZstd)), ""},
		"uncompressed":       {ocispec.MediaTypeImageManifest, manifest(config, desc(ocispec.MediaTypeImageLayer)), ""},
		"no content type":    {"", plain, ""},
		"text/plain":         {"text/plain", plain, ""},
		"index":              {ocispec.MediaTypeImageIndex, index, ""},
		"list":               {dockerManifestList, index, ""},
		"index by content":   {"application/octet-stream", index, ""},
		"empty index":        {ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[]}`, ""},
		"not JSON":           {ocispec.MediaTypeImageManifest, "<html>", "decode manifest"},
		"unknown type":       {"application/x-thing", plain, "unknown media type \"application/x-thing\""},
		"empty object":       {"", "{}", "unknown media type"},
		"schema 1":           {dockerSchema1Signed, `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		"schema 1 by body":   {"", `{"schemaVersion":1}`, "schema 1"},
		"both":               {ocispec.MediaTypeImageManifest, fmt.Sprintf(`{"config":%s,"layers":[%s],"manifests":[]}`, config, layer), "both"},
		"contradiction":      {ocispec.MediaTypeImageManifest, strings.Replace(plain, "{", `{"mediaType":"`+ocispec.MediaTypeImageIndex+`",`, 1), "says that it is"},
		"index as manifest":  {ocispec.MediaTypeImageManifest, index, "is not what its media type"},
		"manifest as index":  {ocispec.MediaTypeImageIndex, plain, "is not what its media type"},
		"no layers":          {ocispec.MediaTypeImageManifest, manifest(config, ""), "no layers"},
		"unknown layer":      {ocispec.MediaTypeImageManifest, manifest(config, desc("application/x-layer")), "layer 1 has the unknown media type"},
		"encrypted layer":    {ocispec.MediaTypeImageManifest, manifest(config, desc("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")), "unknown media type"},
		"helm chart":         {ocispec.MediaTypeImageManifest, manifest(desc("application/vnd.cncf.helm.config.v1+json"), layer), "not that of a container image"},
		"bad digest":         {ocispec.MediaTypeImageManifest, manifest(config, `{"mediaType":"`+ocispec.MediaTypeImageLayer+`","digest":"sha256:../../x","size":1}`), "digest"},
		"sha512":             {ocispec.MediaTypeImageManifest, manifest(config, `{"mediaType":"`+ocispec.MediaTypeImageLayer+`","digest":"sha512:`+strings.Repeat("a", 128)+`","size":1}`), "algorithm"},
		"negative size":      {ocispec.MediaTypeImageManifest, manifest(config, strings.Replace(layer, `"size":7`, `"size":-1`, 1)), "size -1"},
		"too many layers":    {ocispec.MediaTypeImageManifest, manifest(config, strings.TrimSuffix(strings.Repeat(layer+",", 501), ",")), "layers has more than 500"},
		"null":               {"", "null", "unknown media type"},
		"nested index entry": {ocispec.MediaTypeImageIndex, strings.Replace(index, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseDocument(c.mediaType, []byte(c.data))
			switch {
			case c.wantErr == "" && err != nil:
				t.Error(err)
			case c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)):
				t.Errorf("error %v, want %q", err, c.wantErr)
			}
		})
	}
}

func TestForPlatform(t *testing.T) {
	entry := func(platform string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(platform)}
		if platform != "" {
			p := platforms.MustParse(platform)
			d.Platform = &p
		}
		return d
	}
	attestation := entry("unknown/unknown")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	for name, c := range map[string]struct {
		node    string
		entries []string
		want    string
	}{
		"exact":               {"linux/amd64", []string{"linux/arm64", "linux/amd64", "linux/386"}, "linux/amd64"},
		"best variant":        {"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, "linux/arm/v7"},
		"lower variant":       {"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm64"}, "linux/arm/v6"},
		"32 bits on arm64":    {"linux/arm64", []string{"linux/arm/v7", "linux/amd64"}, "linux/arm/v7"},
		"amd64 v3 is too new": {"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, "linux/amd64"},
		"none":                {"linux/amd64", []string{"linux/s390x", "windows/amd64"}, "error"},
		"unnamed":             {"linux/amd64", []string{"linux/s390x", ""}, ""},
		"named first":         {"linux/amd64", []string{"", "linux/amd64"}, "linux/amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			entries := []ocispec.Descriptor{attestation}
			for _, e := range c.entries {
				entries = append(entries, entry(e))
			}
			got, err := forPlatform(entries, platforms.Only(platforms.MustParse(c.node)))
			if c.want == "error" {
				if len(got) > 0 || !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x, windows/amd64") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || got[0].Digest != digest.FromString(c.want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// An accepted document has only digests that can be file names, and never more than the limits.
func FuzzManifest(f *testing.F) {
	f.Add("", []byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","platform":{"os":"linux"}}]}`))
	f.Add(dockerManifest, []byte(`{"config":{"digest":"`+someDigest+`"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+someDigest+`"}]}`))
	f.Add(dockerSchema1, []byte(`{"schemaVersion":1,"fsLayers":[{}]}`))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		d, err := parseDocument(mediaType, data)
		if err != nil {
			return
		}
		m := d.manifest
		all := append(append([]ocispec.Descriptor{}, d.entries...), m.Layers...)
		if !d.isIndex {
			all = append(all, m.Config)
			if len(m.Layers) == 0 || len(m.Layers) > imageconfig.MaxLayers {
				t.Fatalf("%d layers", len(m.Layers))
			}
		} else if _, err := forPlatform(d.entries, platforms.Default()); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		for _, x := range all {
			if x.Digest.Validate() != nil || x.Size < 0 {
				t.Fatalf("descriptor %v", x)
			}
		}
	})
}

// A manifest or an index that grows when it is decoded is refused before that, and one that is
// accepted costs a bounded multiple of its size.
func TestManifestLimits(t *testing.T) {
	entry := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":7`
	layer := `{"mediaType":"` + ocispec.MediaTypeImageLayerGzip + `","digest":"` + someDigest + `","size":7`
	manifest := func(more string) string {
		return `{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + someDigest + `","size":7},"layers":[` + layer + `}]` + more + `}`
	}
	index := func(entries string) string { return `{"schemaVersion":2,"manifests":[` + entries + `]}` }
	for name, c := range map[string]struct{ data, wantErr string }{
		"index of many platforms":  {index(testcost.Repeated(entry+`,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"a":"b"}}`, 500)), ""},
		"empty entries":            {index(testcost.Repeated(`{}`, 1_000_000)), "manifests has more than"},
		"empty entries, in case":   {`{"MANIFESTS":[` + testcost.Repeated(`{}`, 1_000_000) + `]}`, "manifests has more than"},
		"entries twice":            {`{"manifests":[` + entry + `}],"Manifests":[]}`, "twice"},
		"layers twice":             {manifest(`,"Layers":[]`), "twice"},
		"config twice":             {manifest(`,"config":{}`), "twice"},
		"media type twice":         {manifest(`,"mediaType":"` + ocispec.MediaTypeImageManifest + `","mediatype":"x"`), "twice"},
		"layers":                   {`{"layers":[` + testcost.Repeated(`{}`, 1_000_000) + `]}`, "layers has more than"},
		"URLs of an entry":         {index(entry + `,"urls":[` + testcost.Repeated(`""`, 100_000) + `]}`), "urls has more than"},
		"URLs of a layer":          {`{"layers":[` + layer + `,"urls":[` + testcost.Repeated(`""`, 100_000) + `]}]}`, "urls has more than"},
		"URLs of the config":       {`{"config":{"urls":[` + testcost.Repeated(`""`, 100_000) + `]}}`, "urls has more than"},
		"annotations":              {manifest(`,"annotations":{` + testcost.Numbered(100_000, `""`) + `}`), "annotations has more than"},
		"annotations of an entry":  {index(entry + `,"annotations":{` + testcost.Numbered(100_000, `""`) + `}}`), "annotations has more than"},
		"features of an entry":     {index(entry + `,"platform":{"os.features":[` + testcost.Repeated(`""`, 100_000) + `]}}`), "os.features has more than"},
		"digest of an entry twice": {index(entry + `,"Digest":"x"}`), "twice"},
		"unknown members":          {manifest(`,"x":[` + testcost.Repeated(`{}`, 1_000_000) + `]`), "more than"},
		"nesting":                  {manifest(`,"x":` + strings.Repeat("[", 1<<20)), "within each other"},
		"size":                     {manifest(`,"x":"` + strings.Repeat("x", 4<<20) + `"`), "larger than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			data := []byte(c.data)
			cost := testcost.Allocated(func() { _, err = parseDocument("", data) })
			switch {
			case c.wantErr == "" && err != nil:
				t.Error(err)
			case c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)):
				t.Errorf("error %v, want %q", err, c.wantErr)
			}
			if err == nil && cost > 8<<20 || err != nil && cost > 64<<10 {
				t.Errorf("%d bytes cost %d bytes of memory", len(data), cost)
			}
		})
	}
}
