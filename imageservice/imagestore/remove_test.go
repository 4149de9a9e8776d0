package imagestore

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/overlay"
)

// Removing an image by any name removes all its names. Layers that other images, containers or
// pulls need stay.
func TestRemove(t *testing.T) {
	e := newEnv(t)
	a := e.add("example.org/a:v1", "base", "a")
	e.record(a, "example.org/elsewhere/a:v2")
	b := e.add("example.org/b:v1", "base", "b")
	if _, err := e.layers.Create(t.Context(), overlay.CreateArgs{ID: strings.Repeat("c", 64), Parent: ChainIDs(b.diffIDs)[1]}); err != nil {
		t.Fatal(err)
	}
	remove := func(ref string) {
		t.Helper()
		if err := e.store.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	remove("example.org/elsewhere/a:v2")
	if _, err := e.store.Get("example.org/a:v1"); !errdefs.IsNotFound(err) {
		t.Errorf("the other name is still there: %v", err)
	}
	if n := len(e.layers.Layers()); n != 2 {
		t.Errorf("%d layers after a", n)
	}
	remove("example.org/a:v1")
	remove(a.id.String())
	remove(b.id.Encoded()[:10])
	if n := len(e.layers.Layers()); n != 2 {
		t.Errorf("%d layers below a container", n)
	}
	if err := e.layers.Remove(t.Context(), strings.Repeat("c", 64)); err != nil {
		t.Fatal(err)
	}
	if err := e.store.Remove(t.Context(), "not a reference"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("remove of nonsense: %v", err)
	}
	e.add("example.org/b:v1", "base", "b")
	remove("example.org/b:v1")
	if n := len(e.layers.Layers()); n != 0 {
		t.Errorf("%d layers at the end", n)
	}
	got := string(must(os.ReadFile(e.path("repositories.json"))))
	if got != `{"Repositories":{}}` {
		t.Errorf("repositories.json holds %s", got)
	}
	for _, dir := range []string{"imagedb/content/sha256", "distribution/diffid-by-digest/sha256", "distribution/v2metadata-by-diffid/sha256"} {
		if entries := must(os.ReadDir(e.path(dir))); len(entries) > 0 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
}

// A damaged image can also be removed.
func TestRemoveDamaged(t *testing.T) {
	for name, damage := range map[string]func(e *env, b built) error{
		"configuration": func(e *env, b built) error {
			return os.WriteFile(e.path("imagedb/content/sha256/"+b.id.Encoded()), nil, 0o600)
		},
		"base layer": func(e *env, b built) error {
			return os.RemoveAll(e.path("layerdb/sha256/" + ChainIDs(b.diffIDs)[0].Encoded()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			b := e.add("example.org/app:v1", "1", "2", "3", "4")
			e.close()
			if err := damage(e, b); err != nil {
				t.Fatal(err)
			}
			e.open()
			if err := e.store.Remove(t.Context(), "example.org/app:v1"); err != nil {
				t.Fatal(err)
			}
			e.reopen()
		})
	}
}

// A start removes the layers of a crash between commit and record, but not before the layers of
// containers are held.
func TestSweepRemovesUnrecordedLayers(t *testing.T) {
	e := newEnv(t)
	e.commit([][]byte{tarOf("1"), tarOf("2"), tarOf("3"), tarOf("4")})
	if n := len(e.layers.Layers()); n != 4 {
		t.Fatalf("%d layers", n)
	}
	e.reopen()
	layers := e.layers.Layers()
	base := layers[slices.IndexFunc(layers, func(l overlay.Layer) bool { return l.Parent == "" })]
	release, err := e.layers.Hold(base.ID)
	if err != nil {
		t.Fatal(err)
	}
	sweep := func(want int) {
		t.Helper()
		if err := e.store.SweepAtStart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(e.layers.Layers()); n != want {
			t.Errorf("%d layers stay, want %d", n, want)
		}
	}
	sweep(1)
	release()
	sweep(0)
}

// SweepAtStart leaves the other layers of a damaged image to the pull that repairs it.
func TestSweepSparesDamagedImages(t *testing.T) {
	e := newEnv(t)
	b := e.add("example.org/app:v1", "1", "2", "3", "4")
	content := e.path("imagedb/content/sha256/" + b.id.Encoded())
	if err := os.WriteFile(content, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e.reopen()
	if err := e.store.SweepAtStart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(e.layers.Layers()); n != 4 {
		t.Errorf("%d layers are left", n)
	}
	e.record(b, "example.org/app:v1")
}
