package imagestore

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

func TestParseReference(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"busybox":                                "docker.io/library/busybox:latest",
		"busybox:1.36":                           "docker.io/library/busybox:1.36",
		"user/app":                               "docker.io/user/app:latest",
		"index.docker.io/library/app":            "docker.io/library/app:latest",
		"localhost:5000/ns/app:v1":               "localhost:5000/ns/app:v1",
		"registry.k8s.io/pause:3.10":             "registry.k8s.io/pause:3.10",
		"busybox" + digest:                       "docker.io/library/busybox" + digest,
		"busybox:1.36" + digest:                  "docker.io/library/busybox" + digest,
		"[::1]:5000/app":                         "[::1]:5000/app:latest",
		"":                                       "",
		"Busybox":                                "",
		"app:":                                   "",
		"app@sha256:12":                          "",
		"https://host/app":                       "",
		"a b":                                    "",
		strings.Repeat("a", 64):                  "", // would be an ID
		strings.Repeat("a/", 200) + "name":       "",
		"app@sha512:" + strings.Repeat("a", 128): "",
	} {
		got, err := ParseReference(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q was parsed as %s", in, got)
			} else if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Errorf("%q: error of no class: %v", in, err)
			}
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q: got %v, %v; want %s", in, got, err, want)
		}
	}
}

func TestMatchesAny(t *testing.T) {
	ref, err := ParseReference("busybox:1.36")
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]bool{
		"busybox": true, "busybox:1.36": true, "busybox:*": true, "docker.io/library/*": true, "docker.io/library/busybox:1.36": true,
		"busybo": false, "busybox:1.3": false, "*": true, "quay.io/*": false, "docker.io/*": false,
	} {
		if got := matchesAny([]string{pattern}, ref); got != want {
			t.Errorf("%q: %v", pattern, got)
		}
	}
}

// A reference that is parsed can be stored in its familiar form and found by every form.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "[::1]:5000/x", "docker.io/library/x", "x:y@z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		if reference.IsNameOnly(ref) {
			t.Fatalf("%q has neither tag nor digest", s)
		}
		repos := repositories{}
		repos.set(ref, "sha256:x")
		for _, form := range []string{s, ref.String(), reference.FamiliarString(ref)} {
			again, err := ParseReference(form)
			if err != nil {
				t.Fatalf("%q of %q: %v", form, s, err)
			}
			if id, ok := repos.get(again); !ok || id != "sha256:x" {
				t.Fatalf("%q of %q is not found", form, s)
			}
		}
	})
}
