package imageservice

import (
	"encoding/json"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotate gives an image another manifest, with an annotation.
func (e *env) annotate(b built, key, value string) built {
	e.t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(b.manifest, &m); err != nil {
		e.t.Fatal(err)
	}
	m.Annotations = map[string]string{key: value}
	return e.assemble(b, m.MediaType, m)
}

// An image is a checkpoint if its manifest says so and it has the files of an archive, also after a
// restart. A manifest cannot change another image into a checkpoint.
func TestCheckpointImages(t *testing.T) {
	e := newEnv(t, nil)
	archive := layerSpec{files: []file{{"./spec.dump", "{}"}, {"checkpoint/inventory.img", "i"}, {"config.dump", "{}"}}}
	other := simple("other")
	for name, tc := range map[string]struct {
		spec imageSpec
		key  string
		want bool
	}{
		"crio":       {imageSpec{layers: []layerSpec{archive}}, "io.kubernetes.cri-o.annotations.checkpoint.name", true},
		"criu":       {imageSpec{layers: []layerSpec{archive}, created: time.Unix(1, 0)}, "org.criu.checkpoint.container.name", true},
		"silent":     {imageSpec{layers: []layerSpec{archive}, created: time.Unix(2, 0)}, "some.thing", false},
		"two-layers": {imageSpec{layers: []layerSpec{archive, other.layers[0]}}, "org.criu.checkpoint.container.name", false},
		"liar":       {other, "org.criu.checkpoint.container.name", false},
	} {
		e.push(e.annotate(e.build(tc.spec), tc.key, "counter"), name, "v1")
		if got := e.pull(name + ":v1").Checkpoint; got != tc.want {
			t.Errorf("%s: a checkpoint: %t", name, got)
		}
	}
	e.reopen()
	for name, want := range map[string]bool{"crio": true, "criu": true, "silent": false, "two-layers": false, "liar": false} {
		if img := must(e.service.Get(e.ref(name + ":v1"))); img.Checkpoint != want {
			t.Errorf("%s, after a restart, a checkpoint: %t", name, img.Checkpoint)
		}
	}
	// The same image by a manifest that says more than the first one.
	e.push(e.annotate(e.build(imageSpec{layers: []layerSpec{archive}, created: time.Unix(2, 0)}), "org.criu.checkpoint.container.name", "counter"), "silent", "v2")
	if !e.pull("silent:v2").Checkpoint || !must(e.service.Get(e.ref("silent:v1"))).Checkpoint {
		t.Error("the annotation of a second manifest is ignored")
	}
}
