package imagestore

import (
	"encoding/json"
	"testing"
)

// Names of Docker Hub are written in the short form, all others in full.
func TestFamiliarNames(t *testing.T) {
	repos := repositories{}
	for _, name := range []string{"centos:7", "user/app", "localhost:5000/a/b:c", "quay.io/x@" + someDigest} {
		ref, err := ParseReference(name)
		if err != nil {
			t.Fatal(err)
		}
		repos.set(ref, "sha256:1")
	}
	got := string(must(json.Marshal(repositoriesFile{repos})))
	want := `{"Repositories":{"centos":{"centos:7":"sha256:1"},"localhost:5000/a/b":{"localhost:5000/a/b:c":"sha256:1"},` +
		`"quay.io/x":{"quay.io/x@` + someDigest + `":"sha256:1"},"user/app":{"user/app:latest":"sha256:1"}}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
