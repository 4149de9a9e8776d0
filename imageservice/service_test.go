package imageservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/internal/testseed"
)

// A tag that moves leaves the old image without it, until that image is removed.
func TestTagMoves(t *testing.T) {
	e := newEnv(t, nil)
	old := e.push(e.build(simple("old")), "app", "latest")
	e.pull("app")
	now := e.push(e.build(simple("new")), "app", "latest")
	img := e.pull("app")
	if img.ID != now.id {
		t.Errorf("pulled %s", img.ID)
	}
	left, err := e.service.Get(old.id.String())
	if err != nil || !left.Dangling() || !slices.Equal(left.Digests, []string{e.ref("app@" + old.digest.String())}) {
		t.Errorf("old image: %+v, %v", left, err)
	}
	if n := len(e.service.List()); n != 2 {
		t.Errorf("%d images", n)
	}
	e.reopen()
	if again, err := e.service.Get(old.id.String()); err != nil || !cmp.Equal(left, again) {
		t.Errorf("after a restart: %s", cmp.Diff(left, again))
	}
	if err := e.service.Remove(t.Context(), e.ref("app@"+old.digest.String())); err != nil {
		t.Fatal(err)
	}
	if got := e.service.List(); len(got) != 1 || got[0].ID != now.id {
		t.Errorf("images %v", got)
	}
	if n := len(e.layers.Layers()); n != 1 {
		t.Errorf("%d layers", n)
	}
}

// A damaged image counts as absent, so that the next pull is a real one and repairs it.
func TestPullRepairs(t *testing.T) {
	for name, damage := range map[string]func(e *env, b built) error{
		"layer directory lost": func(e *env, b built) error {
			l := must(e.layers.Layer(imagestore.ChainIDs(b.diffIDs)[0]))
			return os.RemoveAll(filepath.Join(e.root, "overlay2", l.CacheID))
		},
		"layer entry lost": func(e *env, b built) error {
			return os.RemoveAll(filepath.Join(e.root, "image/overlay2/layerdb/sha256", imagestore.ChainIDs(b.diffIDs)[1].Encoded()))
		},
		"configuration changed": func(e *env, b built) error {
			return os.WriteFile(filepath.Join(e.root, "image/overlay2/imagedb/content/sha256", b.id.Encoded()), []byte("{}"), 0o600)
		},
		"configuration lost": func(e *env, b built) error {
			return os.Remove(filepath.Join(e.root, "image/overlay2/imagedb/content/sha256", b.id.Encoded()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, nil)
			b := e.push(e.build(fourLayers), "app", "v1")
			want := e.pull("app:v1")
			e.close()
			if err := damage(e, b); err != nil {
				t.Fatal(err)
			}
			e.open()
			if problems, err := e.service.Check(t.Context()); err != nil || len(problems) == 0 {
				t.Errorf("Check found %v, %v", problems, err)
			}
			if _, err := e.service.Get(b.id.String()); !errdefs.IsNotFound(err) {
				t.Errorf("the damaged image is found: %v", err)
			}
			if resp, err := e.service.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: e.ref("app:v1")}}); err != nil || resp.GetImage() != nil {
				t.Errorf("status of the damaged image: %v, %v", resp, err)
			}
			if diff := cmp.Diff(want, e.pull("app:v1")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Layers that were committed for an image that could not be recorded do not stay.
func TestUnrecordedLayersAreRemoved(t *testing.T) {
	e := newEnv(t, nil)
	e.push(e.build(fourLayers), "app", "v1")
	content := filepath.Join(e.root, "image/overlay2/imagedb/content/sha256")
	if err := os.Rename(content, content+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(content, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:v1")}); err == nil || !strings.Contains(err.Error(), "record image") {
		t.Errorf("error %v", err)
	}
	if err := os.Remove(content); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(content+".away", content); err != nil {
		t.Fatal(err)
	}
	if n := len(e.layers.Layers()); n != 0 {
		t.Errorf("%d layers stay", n)
	}
	e.verify()
	e.pull("app:v1")
}

// Random operations against a map: after each one the service agrees with the map, and so does a
// service that opens the same disk.
func TestModel(t *testing.T) {
	e := newEnv(t, nil)
	shared := []layerSpec{{files: []file{{"base", "b"}}}, {files: []file{{"mid", "m"}}}}
	var images []built
	for i := range 5 {
		layers := append(slices.Clone(shared[:i%3]), layerSpec{files: []file{{"top", fmt.Sprint(i)}}})
		images = append(images, e.push(e.build(imageSpec{layers: layers}), "app", ""))
	}
	model := map[string]digest.Digest{} // full tag → ID
	present := map[digest.Digest]bool{}
	random := testseed.New(t)
	for step := range 150 {
		b := images[random.IntN(len(images))]
		tag := fmt.Sprintf("t%d", random.IntN(4))
		switch random.IntN(4) {
		case 0, 1:
			e.push(b, "app", tag)
			e.pull("app:" + tag)
			model[e.ref("app:"+tag)], present[b.id] = b.id, true
		case 2:
			ref := e.ref("app:" + tag)
			if random.IntN(2) == 0 {
				ref = b.id.String()
			}
			id, ok := model[ref]
			if strings.HasPrefix(ref, "sha256:") {
				id, ok = b.id, true
			}
			if err := e.service.Remove(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
			if ok {
				delete(present, id)
				for name, other := range model {
					if other == id {
						delete(model, name)
					}
				}
			}
		case 3:
			e.reopen()
		}
		got, gotPresent := map[string]digest.Digest{}, map[digest.Digest]bool{}
		for _, img := range e.service.List() {
			gotPresent[img.ID] = true
			for _, name := range img.Tags {
				got[name] = img.ID
			}
		}
		if diff := cmp.Diff(model, got, cmpopts.EquateEmpty()) + cmp.Diff(present, gotPresent, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("step %d: %s", step, diff)
		}
		if step%10 == 0 {
			e.verify()
		}
	}
}

// Operations that run at the same time leave a consistent store.
func TestConcurrentUse(t *testing.T) {
	e := newEnv(t, nil)
	base := layerSpec{files: []file{{"base", incompressible(1<<16, 10)}}}
	var ids []built
	for i := range 4 {
		b := e.build(imageSpec{layers: []layerSpec{base, {files: []file{{"top", fmt.Sprint(i)}}}}})
		ids = append(ids, e.push(b, fmt.Sprintf("app%d", i), "v1"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	done := make(chan error)
	for i := range 8 {
		go func() {
			var err error
			for ctx.Err() == nil && err == nil {
				name := e.ref(fmt.Sprintf("app%d:v1", i%4))
				if i < 4 {
					_, err = e.service.Pull(t.Context(), PullArgs{Ref: name}) //nolint:contextcheck // ctx ends the loop, not a call
				} else {
					err = e.service.Remove(t.Context(), ids[i%4].id.String()) //nolint:contextcheck // ctx ends the loop, not a call
				}
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A reload takes effect on present images and on later pulls.
func TestReload(t *testing.T) {
	e := newEnv(t, nil)
	e.push(e.build(simple("app")), "app", "v1")
	e.pull("app:v1")
	ref := e.ref("app:v1")
	pinned := func() bool {
		img, err := e.service.Get(ref)
		if err != nil {
			t.Fatal(err)
		}
		return img.Pinned
	}
	if pinned() {
		t.Fatal("pinned before")
	}
	next := e.opts
	next.Pinned = []string{"*/app:*"}
	next.TotalConcurrency = 1
	next.CertsDirs = []string{filepath.Join(e.root, "other")}
	if err := e.service.Reload(next); err != nil {
		t.Fatal(err)
	}
	if !pinned() {
		t.Error("not pinned after")
	}
	if err := os.MkdirAll(filepath.Join(next.CertsDirs[0], e.addr), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(next.CertsDirs[0], e.addr, "hosts.toml"), []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: ref}); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("pull does not read the new directory: %v", err)
	}
	next.Pinned = []string{"["}
	if err := e.service.Reload(next); err == nil || !pinned() {
		t.Errorf("options that cannot work were taken over: %v", err)
	}
}

// Impossible options are refused.
func TestOpenRefusesOptions(t *testing.T) {
	e := newEnv(t, nil)
	for name, o := range map[string]Options{
		"root": {}, "platform": {Root: e.root, Platform: "a/b/c/d/e"}, "pinned": {Root: e.root, Pinned: []string{"["}},
		"negative": {Root: e.root, Concurrency: -1}, "timeout": {Root: e.root, StallTimeout: -1},
	} {
		if _, err := Open(t.Context(), o, e.layers); err == nil {
			t.Errorf("options: %s: no error", name)
		}
	}
}
