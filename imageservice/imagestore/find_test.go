package imagestore

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Get finds an image by every form of its names and ID.
func TestGet(t *testing.T) {
	e := newEnv(t)
	b := e.add("example.org/ns/app:v1", "x")
	hex := b.id.Encoded()
	for _, form := range []string{"example.org/ns/app:v1", "example.org/ns/app@" + b.manifest.String(), "example.org/ns/app:any@" + b.manifest.String(), b.id.String(), hex, hex[:12], "sha256:" + hex[:7], hex[:1]} {
		if got, err := e.store.Get(form); err != nil || got.ID != b.id {
			t.Errorf("%q: %v, %v", form, got.ID, err)
		}
	}
	for form, class := range map[string]func(error) bool{
		"example.org/ns/app":                errdefs.IsNotFound,
		"example.org/ns/app:v2":             errdefs.IsNotFound,
		"ns/app:v1":                         errdefs.IsNotFound,
		strings.Repeat("f", 64):             errdefs.IsNotFound,
		"sha256:" + strings.Repeat("f", 64): errdefs.IsNotFound,
		"example.org/ns/app@" + someDigest:  errdefs.IsNotFound,
		"":                                  errdefs.IsInvalidArgument,
		"Not A Reference":                   errdefs.IsInvalidArgument,
	} {
		if _, err := e.store.Get(form); !class(err) {
			t.Errorf("%q: %v", form, err)
		}
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	s := &Store{images: map[digest.Digest]Image{}, repos: repositories{}}
	for _, hex := range []string{"abc1" + strings.Repeat("0", 60), "abc2" + strings.Repeat("0", 60)} {
		id := digest.NewDigestFromEncoded(digest.SHA256, hex)
		s.images[id] = Image{ID: id}
	}
	if _, err := s.Get("abc"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"abc"`) {
		t.Errorf("ambiguous: %v", err)
	}
	if img, err := s.Get("abc1"); err != nil || !strings.HasPrefix(img.ID.Encoded(), "abc1") {
		t.Errorf("unique: %v, %v", img.ID, err)
	}
	// A name wins over a prefix.
	named := digest.NewDigestFromEncoded(digest.SHA256, strings.Repeat("9", 64))
	s.images[named] = Image{ID: named}
	s.repos.set(must(ParseReference("abc1")), named)
	if img, err := s.Get("abc1"); err != nil || img.ID != named {
		t.Errorf("name: %v, %v", img.ID, err)
	}
}
