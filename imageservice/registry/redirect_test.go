package registry

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/testregistry"
)

// clientPair writes the certificate and key of a test server to files, for use by a client.
func clientPair(t *testing.T, c tls.Certificate) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")
	writePEM(t, cert, c.Certificate[0])
	data := must(x509.MarshalPKCS8PrivateKey(c.PrivateKey))
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: data}), 0o600); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Headers and client certificates of hosts.toml, passwords and cookies go only to the host, also if
// it redirects.
func TestRedirectCarriesNothingOfTheHost(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	e.push(image{content: "x"})
	storage := record(t, "127.0.0.1:0", e.registry.ServeHTTP)
	storage.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	storage.StartTLS()
	front := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
		if user, _, _ := r.BasicAuth(); user != "u" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "secret", Path: "/"})
		http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	front.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	front.StartTLS()
	cert, key := clientPair(t, front.TLS.Certificates[0])
	e.configure(front.addr(), fmt.Sprintf("server = %q\nskip_verify = true\nclient = [[%q, %q]]\n[header]\nX-Secret = \"s\"", front.URL, cert, key))
	if _, err := e.pull(front.addr()+"/app:v1", Auth{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range front.requests {
		if r.Header.Get("X-Secret") != "s" || len(r.TLS.PeerCertificates) != 1 {
			t.Errorf("the host got header %v and %d certificates", r.Header, len(r.TLS.PeerCertificates))
		}
	}
	if storage.count() == 0 {
		t.Error("the storage was not asked")
	}
	for _, r := range storage.requests {
		for _, name := range []string{"X-Secret", "Authorization", "Cookie", "Referer"} {
			if v := r.Header.Get(name); v != "" {
				t.Errorf("%s went to the storage: %q", name, v)
			}
		}
		if len(r.TLS.PeerCertificates) != 0 {
			t.Error("the client certificate went to the storage")
		}
	}
}

// A registry cannot lead the node to the metadata service of its cloud, to anything but HTTP
// servers, or around in a loop.
func TestRedirectsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		location string
		class    func(error) bool
		want     string
		requests int
	}{
		"metadata":        {"http://169.254.169.254/latest/meta-data/", errdefs.IsPermissionDenied, "169.254.169.254", 1},
		"metadata, IPv6":  {"http://[fe80::1]/", errdefs.IsPermissionDenied, "fe80::1", 1},
		"mapped metadata": {"http://[::ffff:169.254.169.254]/", errdefs.IsPermissionDenied, "169.254.169.254", 1},
		"file":            {"file:///etc/shadow", errdefs.IsUnknown, "not http or https", 1},
		"no host":         {"http:///v2/", errdefs.IsUnknown, "not http or https", 1},
		"loop":            {"", errdefs.IsUnknown, "more than 10 redirects", 11},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, testregistry.Auth{}, "")
			front := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", cmp.Or(c.location, r.URL.Path))
				w.WriteHeader(http.StatusTemporaryRedirect)
			})
			front.Start()
			_, err := e.pull(front.addr()+"/app:v1", Auth{})
			if !c.class(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if n := front.count(); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
		})
	}
}

// foreignImage pushes an image whose layer is not in the registry but at the given URLs. It returns
// the layer's blob.
func foreignImage(e *env, urls ...string) []byte {
	e.push(image{content: "f", mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls: urls})
	return []byte("f")
}

// A manifest cannot make the node ask servers in its own network, neither directly nor by a
// redirect.
func TestForeignLayerFromTheNodesNetwork(t *testing.T) {
	var blob []byte
	inner := record(t, "127.0.0.1:0", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, bytes.NewReader(blob)) })
	inner.Start()
	outer := record(t, "127.0.0.2:0", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inner.URL+"/layer", http.StatusFound)
	})
	outer.Start()
	byName := strings.Replace(inner.URL, "127.0.0.1", "localhost", 1)
	for name, c := range map[string]struct {
		url     string
		allowed string
		ok      bool
	}{
		"loopback":                    {inner.URL, "", false},
		"name of loopback":            {byName, "", false},
		"metadata":                    {"http://169.254.169.254/latest", "", false},
		"unspecified":                 {strings.Replace(inner.URL, "127.0.0.1", "0.0.0.0", 1), "", false},
		"listed":                      {inner.URL, fmt.Sprintf("layer_hosts = [%q]", inner.URL), true},
		"listed for https":            {inner.URL, fmt.Sprintf("layer_hosts = [%q]", inner.addr()), false},
		"redirect from a listed host": {outer.URL, fmt.Sprintf("layer_hosts = [%q]", outer.URL), false},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, testregistry.Auth{}, "")
			blob = foreignImage(e, c.url+"/layer")
			if c.allowed != "" {
				e.configure(e.addr, c.allowed)
			}
			before := inner.count()
			_, err := e.pull(e.ref("app:v1"), Auth{})
			if (err == nil) != c.ok {
				t.Errorf("error %v", err)
			}
			if asked := inner.count() > before; asked != c.ok {
				t.Errorf("the server was asked: %v", asked)
			}
		})
	}
}

// The registry is asked for a foreign layer first, then a few URLs of bounded length.
func TestForeignLayerURLsAreBounded(t *testing.T) {
	server := record(t, "127.0.0.1:0", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	server.Start()
	urls := []string{server.URL + "/" + strings.Repeat("x", maxURL)}
	for i := range 40 {
		urls = append(urls, fmt.Sprintf("%s/%d", server.URL, i))
	}
	e := newEnv(t, testregistry.Auth{}, "")
	blob := foreignImage(e, urls...)
	e.configure(e.addr, fmt.Sprintf("layer_hosts = [%q]", server.URL))
	if _, err := e.pull(e.ref("app:v1"), Auth{}); !errdefs.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
	if n := server.count(); n == 0 || n > 4 {
		t.Errorf("%d URLs were asked, want 1 to 4", n)
	}
	for _, r := range server.requests {
		if len(r.URL.Path) > maxURL {
			t.Errorf("a URL of %d bytes was asked", len(r.URL.Path))
		}
	}
	before := server.count()
	must(e.registry.PutBlob(blob))
	if _, err := e.pull(e.ref("app:v1"), Auth{}); err != nil {
		t.Fatal(err)
	}
	if server.count() != before {
		t.Error("a URL was asked for a layer that the registry has")
	}
}

// maxURL is longer than any URL that is requested.
const maxURL = 8 << 10

// A server that a manifest names gets nothing from hosts.toml, and has to prove its name.
func TestForeignLayerGetsNothingOfTheHost(t *testing.T) {
	var blob []byte
	server := record(t, "127.0.0.1:0", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, bytes.NewReader(blob)) })
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	e := newEnv(t, testregistry.Auth{}, "")
	front := record(t, "127.0.0.1:0", e.registry.ServeHTTP)
	front.StartTLS()
	cert, key := clientPair(t, front.TLS.Certificates[0])
	blob = foreignImage(e, server.URL+"/layer")
	e.configure(front.addr(), fmt.Sprintf("server = %q\nskip_verify = true\nlayer_hosts = [%q]\nclient = [[%q, %q]]\n[header]\nX-Secret = \"s\"",
		front.URL, server.URL, cert, key))
	_, err := e.pull(front.addr()+"/app:v1", Auth{})
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v, want the error of the certificate", err)
	}
	if n := server.count(); n != 0 {
		t.Errorf("%d requests reached a server whose name is not proved", n)
	}
}

func writePEM(t *testing.T, path string, certificate []byte) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestForeignLayer(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	var mu sync.Mutex
	var authorization []string
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		authorization = append(authorization, r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, "f")
	}))
	defer host.Close()
	foreignImage(e, "ftp://x/y", host.URL+"/layer")
	e.configure(e.addr, fmt.Sprintf("layer_hosts = [%q]", host.URL))
	if _, err := e.pull(e.ref("app:v1"), Auth{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(authorization) != 1 || authorization[0] != "" {
		t.Errorf("authorization sent to a foreign host: %q", authorization)
	}
}

// Storage to which a registry redirects gets no registry credentials, and errors do not contain the
// credentials of the redirect.
func TestRedirectToStorage(t *testing.T) {
	e := newEnv(t, testregistry.Auth{Username: "u", Password: "p"}, "")
	e.push(image{content: "x"})
	var refuse atomic.Bool
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("registry credentials went to the storage")
		}
		if refuse.Load() {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		r.SetBasicAuth("u", "p")
		e.registry.ServeHTTP(w, r)
	}))
	defer storage.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, storage.URL+r.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
			return
		}
		e.registry.ServeHTTP(w, r)
	}))
	defer front.Close()
	ref, password := strings.TrimPrefix(front.URL, "http://")+"/app:v1", Auth{Username: "u", Password: "p"}
	refuse.Store(true)
	if _, err := e.pull(ref, password); !errdefs.IsPermissionDenied(err) || strings.Contains(err.Error(), "secret") {
		t.Errorf("refused: %v", err)
	}
	refuse.Store(false)
	if _, err := e.pull(ref, password); err != nil {
		t.Error(err)
	}
	storage.Close()
	e.push(image{content: "y"})
	if _, err := e.pull(ref, password); !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "secret") {
		t.Errorf("gone: %v", err)
	}
}
