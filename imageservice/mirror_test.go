package imageservice

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testregistry"
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

// startMirror starts a registry without images.
func startMirror(t *testing.T, o testregistry.Options) (*testregistry.Registry, *testregistry.Server) {
	t.Helper()
	r := testregistry.New(o)
	server, err := r.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return r, server
}

// A mirror without the image is followed by the next one. hosts.toml is read at every pull.
func TestMirrors(t *testing.T) {
	e := newEnv(t, nil)
	e.push(e.build(fourLayers), "ns/app", "v1")
	empty, other := startMirror(t, testregistry.Options{})
	e.configure(t, "quay.io", fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.%q]\n[host.\"http://%s\"]\n[host.\"http://%s\".header]\nX-Mirror=\"yes\"", other.URL, e.addr, e.addr))
	img, err := e.service.Pull(t.Context(), PullArgs{Ref: "quay.io/ns/app:v1"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"quay.io/ns/app:v1"}, img.Tags); diff != "" {
		t.Error(diff)
	}
	for _, r := range e.registry.Requests() {
		if r.Query != "ns=quay.io" || r.Header.Get("X-Mirror") != "yes" || r.Header.Get("User-Agent") != "mica" {
			t.Errorf("request %+v", r)
		}
	}
	if len(empty.Requests()) == 0 {
		t.Error("the first mirror was not asked")
	}
	e.configure(t, "quay.io", fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.%q]\n", other.URL))
	_, err = e.service.Pull(t.Context(), PullArgs{Ref: "quay.io/ns/app:v2"})
	if !errdefs.IsUnavailable(err) {
		t.Errorf("class of %v", err)
	}
	for _, want := range []string{"mirror " + other.Addr + ": ", "404 Not Found", "mirror 127.0.0.1:1: ", "connection refused"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}

// A host is asked only for what its capabilities permit.
func TestCapabilitiesOfMirrors(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(fourLayers), "ns/app", "v1")
	resolver, other := startMirror(t, testregistry.Options{})
	if _, err := resolver.PutManifest("ns/app", "v3", b.desc.MediaType, b.manifest); err != nil {
		t.Fatal(err)
	}
	e.configure(t, "gcr.io", fmt.Sprintf("server = %q\ncapabilities = [\"resolve\"]\n[host.\"http://%s\"]\ncapabilities = [\"pull\"]", other.URL, e.addr))
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: "gcr.io/ns/app:v3"}); err != nil {
		t.Fatal(err)
	}
	if n := e.requests("GET", "/manifests/"); n != 0 {
		t.Errorf("a host that may not resolve was asked %d times", n)
	}
	for _, r := range resolver.Requests() {
		if strings.Contains(r.Path, "/blobs/") {
			t.Errorf("a host that may not pull was asked for %s", r.Path)
		}
	}
}

// A mirror with corrupt layers is followed by the next host.
func TestCorruptMirror(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(fourLayers), "ns/app", "v1")
	bad, server := startMirror(t, testregistry.Options{Faults: []testregistry.Fault{{Kind: testregistry.Corrupt, Path: "/blobs/", At: 30}}})
	for i := range b.blobs {
		blob, _ := compress(fourLayers.layers[i].compression, tarOf(fourLayers.layers[i].files))
		must(bad.PutBlob(blob))
	}
	e.configure(t, "ghcr.io", fmt.Sprintf("server = \"http://%s\"\n[host.%q]\ncapabilities = [\"pull\"]", e.addr, server.URL))
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: "ghcr.io/ns/app:v1"}); err != nil {
		t.Error(err)
	}
	if len(bad.Requests()) == 0 {
		t.Error("the mirror was not asked")
	}
}
