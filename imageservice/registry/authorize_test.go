package registry

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/testregistry"
)

// recorder is a server that keeps the requests that it receives.
type recorder struct {
	*httptest.Server

	mu       sync.Mutex // guards the fields below
	requests []*http.Request
	bodies   []string
}

// record starts a recorder on a loopback address that answers with handler.
func record(t *testing.T, address string, handler http.HandlerFunc) *recorder {
	t.Helper()
	r := new(recorder)
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(strings.NewReader(string(body)))
		r.mu.Lock()
		r.requests = append(r.requests, req)
		r.bodies = append(r.bodies, string(body))
		r.mu.Unlock()
		handler(w, req)
	}))
	_ = r.Listener.Close()
	r.Listener = must(net.Listen("tcp", address))
	t.Cleanup(r.Close)
	return r
}

func (r *recorder) addr() string { return r.Listener.Addr().String() }

// secrets returns the number of requests with credentials.
func (r *recorder) secrets() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for i, req := range r.requests {
		if req.Header.Get("Authorization") != "" || strings.Contains(r.bodies[i], "refresh_token") {
			n++
		}
	}
	return n
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests)
}

// A registry cannot direct the credentials for itself to a server of its choice.
func TestTokenServiceOfAnotherServerGetsNoCredentials(t *testing.T) {
	credentials := map[string]Auth{
		"password":       {Username: "u", Password: "p"},
		"identity token": {IdentityToken: "r"},
	}
	for name, realm := range map[string]string{
		"another port of loopback":    "http://127.0.0.1:{port}/token",
		"another address of loopback": "http://127.0.0.2:{port2}/token",
		"another name of loopback":    "http://localhost:{port}/token",
		"redirect from the registry":  "", // of the token service, see below
		"user in the URL":             "http://x:y@127.0.0.1:{port}/token",
		"file":                        "file:///etc/passwd",
		"gopher":                      "gopher://127.0.0.1:{port}/token",
		"no host":                     "http:///token",
	} {
		for kind, auth := range credentials {
			t.Run(name+", "+kind, func(t *testing.T) {
				answer := func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, `{"token":"t","access_token":"t"}`)
				}
				thief, thief2 := record(t, "127.0.0.1:0", answer), record(t, "127.0.0.2:0", answer)
				thief.Start()
				thief2.Start()
				port := func(r *recorder) string { return r.addr()[strings.LastIndex(r.addr(), ":")+1:] }
				realm := strings.NewReplacer("{port}", port(thief), "{port2}", port(thief2)).Replace(realm)
				front := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/token" {
						http.Redirect(w, r, thief.URL+"/token", http.StatusTemporaryRedirect)
						return
					}
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", cmp.Or(realm, "http://"+r.Host+"/token")))
					w.WriteHeader(http.StatusUnauthorized)
				})
				front.Start()
				e := newEnv(t, testregistry.Auth{}, "")
				_, err := e.pull(front.addr()+"/app:v1", auth)
				if !errdefs.IsUnauthorized(err) {
					t.Errorf("error %v", err)
				}
				if n := thief.secrets() + thief2.secrets(); n != 0 {
					t.Errorf("%d requests showed the credentials to another server", n)
				}
			})
		}
	}
}

// A token service that hosts.toml lists gets credentials, whatever its address.
func TestTokenHostsGetCredentials(t *testing.T) {
	for kind, auth := range map[string]Auth{
		"password":       {Username: "u", Password: "p"},
		"identity token": {IdentityToken: "r"},
	} {
		t.Run(kind, func(t *testing.T) {
			var handler http.Handler
			service := record(t, "127.0.0.2:0", func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) })
			service.Start()
			e := newEnv(t, testregistry.Auth{
				Username: "u", Password: "p", RefreshToken: "r", Bearer: true, Realm: service.URL + "/token",
			}, "")
			handler = e.registry
			e.push(image{content: "x"})
			e.configure(e.addr, fmt.Sprintf("token_hosts = [%q]", service.URL))
			if _, err := e.pull(e.ref("app:v1"), auth); err != nil {
				t.Error(err)
			}
			if service.secrets() == 0 {
				t.Error("the token service got no credentials")
			}
		})
	}
}

// Of several challenges the client follows one that it knows, tokens before passwords.
func TestSeveralChallenges(t *testing.T) {
	const basic, bearer = `Basic realm="x"`, `Bearer realm="{realm}",service="s"`
	for name, c := range map[string]struct {
		lines []string
		auth  Auth
	}{
		"Negotiate, then Basic":               {[]string{"Negotiate", basic}, Auth{Username: "u", Password: "p"}},
		"Negotiate with data, then Basic":     {[]string{"Negotiate YII/+w==, " + basic}, Auth{Username: "u", Password: "p"}},
		"Digest, then Basic":                  {[]string{`Digest realm="a, Basic b", nonce=abc, qop="auth,auth-int"`, basic}, Auth{Username: "u", Password: "p"}},
		"Digest and Basic in a line":          {[]string{`Digest realm="a", nonce="b", ` + basic}, Auth{Username: "u", Password: "p"}},
		"Basic, then Bearer":                  {[]string{basic, bearer}, Auth{}},
		"Basic and Bearer in a line":          {[]string{basic + ", " + bearer}, Auth{}},
		"Bearer, then Basic":                  {[]string{bearer, basic}, Auth{}},
		"Bearer of another server, and Basic": {[]string{`Bearer realm="http://127.0.0.9:1/token"`, basic}, Auth{Username: "u", Password: "p"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, testregistry.Auth{}, "")
			e.push(image{content: "x"})
			want := "Bearer t"
			if c.auth != (Auth{}) {
				want = "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p"))
			}
			front := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					_, _ = io.WriteString(w, `{"token":"t"}`)
				case r.Header.Get("Authorization") != want:
					for _, l := range c.lines {
						w.Header().Add("WWW-Authenticate", strings.ReplaceAll(l, "{realm}", "http://"+r.Host+"/token"))
					}
					w.WriteHeader(http.StatusUnauthorized)
				default:
					e.registry.ServeHTTP(w, r)
				}
			})
			front.Start()
			if _, err := e.pull(front.addr()+"/app:v1", c.auth); err != nil {
				t.Error(err)
			}
		})
	}
}

// If a registry redirects the whole API to another one, the client authenticates there as that one
// requests, without the credentials for the first.
func TestRedirectToRegistryWithTokens(t *testing.T) {
	password := Auth{Username: "u", Password: "p"}
	for name, c := range map[string]struct {
		server testregistry.Auth // of the second registry
		auth   Auth
		config string // user:password of the second in docker_config
		tls    bool
		ok     bool
	}{
		"anonymous token":                     {testregistry.Auth{Bearer: true}, Auth{}, "", false, true},
		"anonymous token, credentials stay":   {testregistry.Auth{Bearer: true}, password, "", false, true},
		"anonymous token over TLS":            {testregistry.Auth{Bearer: true}, Auth{}, "", true, true},
		"password of the first is not shown":  {testregistry.Auth{Username: "u", Password: "p"}, password, "", false, false},
		"token for the first is not shown":    {testregistry.Auth{Username: "u", Password: "p", Bearer: true}, password, "", false, false},
		"password of docker_config":           {testregistry.Auth{Username: "a", Password: "b"}, Auth{}, "a:b", false, true},
		"token for docker_config":             {testregistry.Auth{Username: "a", Password: "b", Bearer: true}, Auth{}, "a:b", false, true},
		"docker_config has nothing for first": {testregistry.Auth{Username: "a", Password: "b"}, Auth{}, "", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			var handler http.Handler
			second := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) })
			if c.tls {
				second.StartTLS()
			} else {
				second.Start()
			}
			config := filepath.Join(t.TempDir(), "config.json")
			if c.config != "" {
				text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, second.addr(), base64.StdEncoding.EncodeToString([]byte(c.config)))
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			e := newEnv(t, c.server, config)
			handler = e.registry
			e.push(image{content: "x"})
			front := record(t, "127.0.0.1:0", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, second.URL+r.URL.Path, http.StatusTemporaryRedirect)
			})
			front.Start()
			_, err := e.pull(front.addr()+"/app:v1", c.auth)
			if c.ok && err != nil || !c.ok && !errdefs.IsUnauthorized(err) {
				t.Errorf("error %v", err)
			}
			for _, r := range second.requests {
				if user, _, ok := r.BasicAuth(); ok && user == "u" {
					t.Errorf("%s showed the credentials for the first registry", r.URL)
				}
			}
			if n := front.secrets(); n != 0 {
				t.Errorf("%d requests showed credentials to the first registry, which asks for none", n)
			}
		})
	}
}

func TestAuthentication(t *testing.T) {
	password := Auth{Username: "u", Password: "p"}
	for name, c := range map[string]struct {
		server testregistry.Auth
		auth   Auth
		ok     bool
	}{
		"basic":                  {testregistry.Auth{Username: "u", Password: "p"}, password, true},
		"basic, wrong":           {testregistry.Auth{Username: "u", Password: "q"}, password, false},
		"basic, none":            {testregistry.Auth{Username: "u", Password: "p"}, Auth{}, false},
		"basic, other server":    {testregistry.Auth{Username: "u", Password: "p"}, Auth{Username: "u", Password: "p", Server: "quay.io"}, false},
		"token":                  {testregistry.Auth{Username: "u", Password: "p", Bearer: true}, password, true},
		"token, wrong":           {testregistry.Auth{Username: "u", Password: "q", Bearer: true}, password, false},
		"token, none":            {testregistry.Auth{Username: "u", Password: "q", Bearer: true}, Auth{}, false},
		"token, anonymous":       {testregistry.Auth{Bearer: true}, Auth{}, true},
		"identity token":         {testregistry.Auth{Username: "u", Password: "p", Bearer: true, RefreshToken: "r"}, Auth{IdentityToken: "r"}, true},
		"identity token, wrong":  {testregistry.Auth{Username: "u", Password: "p", Bearer: true, RefreshToken: "r"}, Auth{IdentityToken: "x"}, false},
		"registry token":         {testregistry.Auth{Username: "u", Password: "p", Bearer: true, RegistryToken: "t"}, Auth{RegistryToken: "t"}, true},
		"registry token, forged": {testregistry.Auth{Username: "u", Password: "p", Bearer: true, RegistryToken: "t"}, Auth{RegistryToken: "x"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, c.server, "")
			e.push(image{content: "x"})
			_, err := e.pull(e.ref("app:v1"), c.auth)
			if c.ok && err != nil {
				t.Error(err)
			}
			if !c.ok && !errdefs.IsUnauthorized(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// The token service may be a host other than the registry, also in a private network, if hosts.toml
// lists it.
func TestTokenServiceOfItsOwn(t *testing.T) {
	for name, c := range map[string]struct {
		realm string // of the server at its own address, %s
		class func(error) bool
	}{
		"private address":    {"http://%s/token", nil},
		"relative redirect":  {"http://%s/elsewhere", nil},
		"metadata service":   {"http://169.254.169.254/token", errdefs.IsUnauthorized},
		"another protocol":   {"file:///etc/passwd", errdefs.IsUnauthorized},
		"nobody listens":     {"http://127.0.0.3:1/token", errdefs.IsUnavailable},
		"wrong, no password": {"http://%s/forbidden", errdefs.IsPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			var handler http.Handler
			service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/elsewhere":
					http.Redirect(w, r, "/token?"+r.URL.RawQuery, http.StatusFound)
				case "/forbidden":
					w.WriteHeader(http.StatusForbidden)
				default:
					handler.ServeHTTP(w, r)
				}
			}))
			_ = service.Listener.Close()
			service.Listener = must(net.Listen("tcp", "127.0.0.2:0"))
			service.Start()
			defer service.Close()
			realm := strings.Replace(c.realm, "%s", service.Listener.Addr().String(), 1)
			e := newEnv(t, testregistry.Auth{Username: "u", Password: "p", Bearer: true, Realm: realm}, "")
			e.configure(e.addr, fmt.Sprintf("token_hosts = [%q, \"http://127.0.0.3:1\"]", service.URL))
			handler = e.registry
			e.push(image{content: "x"})
			_, err := e.pull(e.ref("app:v1"), Auth{Username: "u", Password: "p"})
			if c.class == nil && err != nil || c.class != nil && !c.class(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A registry reached over TLS cannot make the client send passwords in plain text.
func TestTokenServiceMustNotDowngrade(t *testing.T) {
	e := newEnv(t, testregistry.Auth{Username: "u", Password: "p", Bearer: true, Realm: "http://127.0.0.2:1/token"}, "")
	e.push(image{content: "x"})
	server := httptest.NewTLSServer(e.registry)
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "https://") + "/app:v1"
	_, err := e.pull(ref, Auth{Username: "u", Password: "p"})
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "http") {
		t.Errorf("error %v", err)
	}
}
