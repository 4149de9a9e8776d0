package imageservice

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

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
			d := document{isIndex: true, manifests: []ocispec.Descriptor{attestation}}
			for _, e := range c.entries {
				d.manifests = append(d.manifests, entry(e))
			}
			got, err := d.forPlatform(platforms.Only(platforms.MustParse(c.node)))
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

// The vectors of an image in the wild (nginx) and of its base plus one layer.
func TestChainIDs(t *testing.T) {
	for _, c := range []struct{ diffIDs, want []string }{
		{
			[]string{
				"1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3", "cff9e7c67fbb49f4a3d39a66187b50cb525ac501d92b8a921b6877270b6f4ae5",
				"c29414fee8ae39b813dd7a744a2acf3e6d755fc70b2ea2bff9b707171a9fd41b", "05afaee498cfc72f71eb89da7586190efa6370883fbb51f1f8e1aab1942aa7a0",
				"2649de4780441086779fb6d6f7645e257f90fb1729b0a36898b8b5faba0f7d86", "215876b36153585516505977b46790e7f44f693f7473c1efaf8b2c7dac4f241a",
				"f3cecf76da4f34560262476c610533206d0f8e3344f896cc2fb0e59efcc0516a",
			},
			[]string{
				"1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3", "c48247a077eb9c2db74e784dce13198fac9ea62484b6073f1a553ab43feeb39b",
				"7de008c056b4fc3bdd6011aaaf2c82c0f5e96faa9b5a038e9329662b4444dd5b", "4ef9cda1abb71e48d04cc35b0aeec61e7409e2dcb71326373e07623dc8a9f07f",
				"32aca3b86eb2d4e257a2a132c0cbb9958aeba1cd85d25ee6a393fd08f6c2288f", "bac9c7cf98543a3f0091df2dbca2cdf87a1cb80d6d4c623d6c059b658562937e",
				"0a7841a283ece9e7e95603090fa7059e7850e1014b9c893d78a876ce1236efc8",
			},
		},
		{
			[]string{"174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02", "b6f04317756746d77962b67142f7b62957507d85b7d1f9b23867c556ea868534"},
			[]string{"174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02", "d35fb962224413183c3afa175d8f75a00837899accec39fd0ca800d054a8afac"},
		},
	} {
		var diffIDs []digest.Digest
		for _, d := range c.diffIDs {
			diffIDs = append(diffIDs, digest.NewDigestFromEncoded(digest.SHA256, d))
		}
		for i, got := range chainIDs(diffIDs) {
			if got.Encoded() != c.want[i] {
				t.Errorf("chain ID %d is %s, want %s", i, got.Encoded(), c.want[i])
			}
			if diffIDs[i].Encoded() != c.diffIDs[i] {
				t.Errorf("diff ID %d was changed", i)
			}
		}
	}
}

// A document that is accepted names nothing by a digest that could not be a file name, and never more than the limits.
func FuzzManifest(f *testing.F) {
	f.Add("", []byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","platform":{"os":"linux"}}]}`))
	f.Add(dockerManifest, []byte(`{"config":{"digest":"`+someDigest+`"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+someDigest+`"}]}`))
	f.Add(dockerSchema1, []byte(`{"schemaVersion":1,"fsLayers":[{}]}`))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		d, err := parseDocument(mediaType, data)
		if err != nil {
			return
		}
		all := append(append([]ocispec.Descriptor{}, d.manifests...), d.layers...)
		if !d.isIndex {
			all = append(all, d.config)
			if len(d.layers) == 0 || len(d.layers) > maxLayers {
				t.Fatalf("%d layers", len(d.layers))
			}
		} else if _, err := d.forPlatform(platforms.Default()); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		for _, x := range all {
			if x.Digest.Validate() != nil || x.Size < 0 {
				t.Fatalf("descriptor %v", x)
			}
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]},"config":{"User":"1:2"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			return
		}
		if e, err := parseEssence(data); err != nil || e.Config.User != c.Config.User || !slices.Equal(e.RootFS.DiffIDs, c.RootFS.DiffIDs) {
			t.Fatalf("what is kept differs: %+v, %v", e, err)
		}
		img := Image{ID: digest.FromBytes(data), User: c.Config.User, Layers: chainIDs(c.RootFS.DiffIDs)}
		if _, err := json.Marshal(toCRI(img)); err != nil {
			t.Fatal(err)
		}
	})
}
