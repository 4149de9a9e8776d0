package imageservice

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// page is the answer of proxies and sign-in portals to any request.
const page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>" // and so on

// wrongAnswers are answers of a broken mirror with status 200, made from the right answer.
func wrongAnswers() map[string]func(right []byte) []byte {
	return map[string]func(right []byte) []byte{
		"page":            func([]byte) []byte { return []byte(page) },
		"large page":      func(right []byte) []byte { return []byte(page + strings.Repeat("<p>", len(right)+1<<20)) },
		"nothing":         func([]byte) []byte { return nil },
		"half":            func(right []byte) []byte { return right[:len(right)/2] },
		"one bit flipped": func(right []byte) []byte { right[len(right)/2] ^= 1; return right },
		"other JSON":      func([]byte) []byte { return []byte(`{"errors":[{"code":"UNKNOWN"}]}`) },
		"more":            func(right []byte) []byte { return append(right, "\n\n"...) },
	}
}

// brokenMirror passes requests on to the registry. It changes the answers to paths that contain
// part.
func brokenMirror(t *testing.T, registry http.Handler, part string, change func([]byte) []byte) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, part) {
			registry.ServeHTTP(w, r)
			return
		}
		whole := r.Clone(r.Context())
		whole.Header.Del("Range")
		answer := httptest.NewRecorder()
		registry.ServeHTTP(answer, whole)
		body := change(bytes.Clone(answer.Body.Bytes()))
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body) // the client may have seen enough
	}))
	t.Cleanup(server.Close)
	return server
}

// A mirror that sends something other than what was requested is skipped, for every part of the
// image.
func TestWrongAnswersOfMirrors(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"etc/", ""}, {"etc/x", incompressible(5000, 1)}}}}}), "app", "")
	index := must(marshalIndex([]ocispec.Descriptor{b.desc}))
	e.push(built{manifest: index, desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex}}, "app", "v1")
	for part, path := range map[string]string{
		"index": "/manifests/v1", "manifest": "/manifests/" + b.digest.String(), "config": "/blobs/" + b.id.String(), "layer": "/blobs/" + b.blobs[0].String(),
	} {
		for name, change := range wrongAnswers() {
			if part == "index" && (name == "one bit flipped" || name == "more") {
				continue // a tag may stand for anything that is an index
			}
			t.Run(part+"/"+name, func(t *testing.T) {
				first, second := brokenMirror(t, e.registry, path, change), brokenMirror(t, e.registry, path, change)
				e.configure(t, "quay.io", fmt.Sprintf("server = \"http://%s\"\n[host.%q]\n[host.%q]\n", e.addr, first.URL, second.URL))
				img, err := e.service.Pull(t.Context(), PullArgs{Ref: "quay.io/app:v1"})
				if err != nil || img.ID != b.id {
					t.Errorf("image %s, %v", img.ID, err)
				}
				if err := e.service.Remove(t.Context(), "quay.io/app:v1"); err != nil {
					t.Fatal(err)
				}
				// Alone it is an error that names the host.
				e.configure(t, "quay.io", fmt.Sprintf("server = %q\n", first.URL))
				_, err = e.service.Pull(t.Context(), PullArgs{Ref: "quay.io/app:v1"})
				if err == nil || !strings.Contains(err.Error(), "mirror "+strings.TrimPrefix(first.URL, "http://")) && part != "layer" {
					t.Errorf("alone: %v", err)
				}
				if errdefs.IsNotFound(err) {
					t.Errorf("alone, it is called not found: %v", err)
				}
			})
		}
	}
}
