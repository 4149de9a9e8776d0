package imagestore

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestTag(t *testing.T) {
	e := newEnv(t)
	b := e.add("example.org/app:v1", "x")
	before := time.Now()
	if err := e.store.Tag(b.id.Encoded()[:12], "busybox"); err != nil {
		t.Fatal(err)
	}
	img, err := e.store.Get("docker.io/library/busybox:latest")
	if err != nil || !slices.Equal(img.Tags, []string{"docker.io/library/busybox:latest", "example.org/app:v1"}) {
		t.Errorf("tags %v, %v", img.Tags, err)
	}
	stamp := must(os.ReadFile(e.path("imagedb/metadata/sha256/" + b.id.Encoded() + "/lastUpdated")))
	if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil || at.Before(before.Add(-time.Second)) {
		t.Errorf("lastUpdated %q, %v", stamp, err)
	}
	for _, bad := range []string{"a@" + someDigest, "UPPER"} {
		if err := e.store.Tag(b.id.String(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("tag %q: %v", bad, err)
		}
	}
	if err := e.store.Tag("absent", "x"); !errdefs.IsNotFound(err) {
		t.Errorf("tag of nothing: %v", err)
	}
}
