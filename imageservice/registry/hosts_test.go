package registry

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// summary describes a host in one line.
func (h hostConfig) summary() string {
	s := h.base.String()
	for _, flag := range []struct {
		on   bool
		name string
	}{
		{h.pull, "pull"}, {h.resolve, "resolve"}, {h.mirror, "mirror"}, {h.tryHTTP, "tryHTTP"}, {h.skipVerify, "skipVerify"},
	} {
		if flag.on {
			s += " " + flag.name
		}
	}
	return s
}

func TestHostsTOML(t *testing.T) {
	for name, c := range map[string]struct {
		registry, toml string
		want           []string
	}{
		"empty table": {"quay.io", "# nothing", []string{"https://quay.io/v2 pull resolve"}},
		"order of the file, not of the alphabet": {
			"docker.io", "server = \"https://registry-1.docker.io\"\n" +
				"[host.\"http://z:5000\"]\ncapabilities=[\"pull\"]\n[host.\"https://a\"]\n[host.\"https://a\".header]\nx=\"1\"\n[host.\"m:1\"]\n[host.\"http://z:5000\".header]\ny=\"2\"",
			[]string{
				"http://z:5000/v2 pull mirror", "https://a/v2 pull resolve mirror", "https://m:1/v2 pull resolve mirror",
				"https://registry-1.docker.io/v2 pull resolve",
			},
		},
		"dotted keys":  {"r", "host.\"https://z\".skip_verify=true\nhost.\"https://a\".capabilities=[\"resolve\"]", []string{"https://z/v2 pull resolve mirror skipVerify", "https://a/v2 resolve mirror", "https://r/v2 pull resolve"}},
		"parent table": {"r", "[host]\n\"https://z\" = {}\n\"https://a\" = {}", []string{"https://z/v2 pull resolve mirror", "https://a/v2 pull resolve mirror", "https://r/v2 pull resolve"}},
		"inline":       {"r", "host = {\"https://z\" = {}, \"https://a\" = {}}", []string{"https://a/v2 pull resolve mirror", "https://z/v2 pull resolve mirror", "https://r/v2 pull resolve"}},
		"paths":        {"r", "[host.\"https://a/prefix\"]\n[host.\"https://b/v2/\"]\n[host.\"https://c/v2/x\"]\noverride_path=true\n[host.\"https://d\"]\noverride_path=true", []string{"https://a/prefix/v2 pull resolve mirror", "https://b/v2 pull resolve mirror", "https://c/v2/x pull resolve mirror", "https://d pull resolve mirror", "https://r/v2 pull resolve"}},
		"server that is a host": {
			"r", "server = \"http://b:80\"\n[host.\"http://b:80\"]\n[host.\"http://b:80\".header]\nx=\"1\"\n[host.\"https://a\"]",
			[]string{"http://b:80/v2 pull resolve mirror", "https://a/v2 pull resolve mirror"},
		},
		"registry that is a host":        {"r", "[host.\"https://r\"]\nca=\"x\"", []string{"https://r/v2 pull resolve"}},
		"server that is a host for less": {"r", "[host.\"https://r\"]\ncapabilities=[\"pull\"]", []string{"https://r/v2 pull mirror", "https://r/v2 pull resolve"}},
		"server with settings":           {"r", "skip_verify=true\n[host.\"https://r\"]", []string{"https://r/v2 pull resolve mirror", "https://r/v2 pull resolve skipVerify"}},
		"another server":                 {"r", "server = \"http://other:80\"", []string{"http://other:80/v2 pull resolve mirror"}},
		"push only server":               {"r", "capabilities = [\"push\"]", []string{"https://r/v2"}},
		"tls for http":                   {"r", "[host.\"http://a:5000\"]\nskip_verify=true", []string{"https://a:5000/v2 pull resolve mirror tryHTTP skipVerify", "https://r/v2 pull resolve"}},
		"localhost":                      {"localhost:5000", "", []string{"https://localhost:5000/v2 pull resolve tryHTTP skipVerify"}},
		"localhost strict":               {"localhost:5000", "skip_verify = false", []string{"https://localhost:5000/v2 pull resolve tryHTTP"}},
		"loopback 80":                    {"127.0.0.1:80", "", []string{"http://127.0.0.1:80/v2 pull resolve"}},
		"loopback 443":                   {"[::1]:443", "", []string{"https://[::1]:443/v2 pull resolve skipVerify"}},
		"loopback":                       {"localhost", "", []string{"https://localhost/v2 pull resolve skipVerify"}},
		"docker hub":                     {"docker.io", "", []string{"https://registry-1.docker.io/v2 pull resolve"}},
	} {
		t.Run(name, func(t *testing.T) {
			hosts, _, err := parseHosts([]byte(c.toml), "/dir", c.registry)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, h := range hosts {
				got = append(got, h.summary())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHostsTOMLDetails(t *testing.T) {
	hosts, _, err := parseHosts([]byte(`
[host."https://a"]
ca = ["/abs/ca.pem", "rel.pem"]
client = [["c.cert", "c.key"], ["/d.cert", "/d.key"]]
dial_timeout = "3s"
[host."https://a".header]
x-one = "1"
X-Two = ["2", "3"]
[host."https://b"]
ca = "b.pem"
client = "both.pem"
[host."https://c"]
client = ["one.pem", "two.pem"]
`), "/dir", "r")
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := hosts[0], hosts[1], hosts[2]
	for _, d := range []string{
		cmp.Diff([]string{"/abs/ca.pem", "/dir/rel.pem"}, a.ca),
		cmp.Diff([][2]string{{"/dir/c.cert", "/dir/c.key"}, {"/d.cert", "/d.key"}}, a.client),
		cmp.Diff(3*time.Second, a.dialTimeout),
		cmp.Diff(http.Header{"X-One": {"1"}, "X-Two": {"2", "3"}}, a.header),
		cmp.Diff([]string{"/dir/b.pem"}, b.ca),
		cmp.Diff([][2]string{{"/dir/both.pem", ""}}, b.client),
		cmp.Diff([][2]string{{"/dir/one.pem", ""}, {"/dir/two.pem", ""}}, c.client),
	} {
		if d != "" {
			t.Error(d)
		}
	}
}

func TestBadHostsTOML(t *testing.T) {
	for name, text := range map[string]string{
		"syntax": "[host", "capability": "capabilities=[\"fly\"]", "url": "[host.\"http://\"]", "ca": "ca=1", "ca element": "ca=[1]",
		"client": "client=true", "client triple": "client=[[\"a\",\"b\",\"c\"]]", "header": "[header]\na=1", "dial": "dial_timeout=\"soon\"",
		"type": "server=1",
	} {
		if _, _, err := parseHosts([]byte(text), "/", "r"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFindHosts(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write := func(root, dir, server string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "hosts.toml"), fmt.Appendf(nil, "server = %q", server), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(first, "under:5000", "https://plain")
	write(first, "under_5000_", "https://underscores")
	write(first, "colon:5000", "https://colon")
	write(second, "_default", "https://default")
	write(second, "quay.io", "https://quay")
	for registry, want := range map[string]string{
		"under:5000": "underscores", "colon:5000": "colon", "quay.io": "quay", "other.io": "default", "docker.io": "default",
	} {
		hosts, _, err := findHosts([]string{filepath.Join(first, "absent"), first, second}, registry)
		if err != nil || hosts[len(hosts)-1].base.Host != want {
			t.Errorf("%s: %v, %v", registry, hosts, err)
		}
	}
	if err := os.WriteFile(filepath.Join(second, "quay.io", "hosts.toml"), []byte("["), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := findHosts([]string{second}, "quay.io"); err == nil || !strings.Contains(err.Error(), filepath.Join(second, "quay.io")) {
		t.Errorf("a hosts.toml that cannot be read: %v", err)
	}
}

func TestDockerCertFiles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "quay.io")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.crt", "client.cert", "client.key", "alone.cert", "README"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hosts, _, err := findHosts([]string{root}, "quay.io")
	if err != nil || len(hosts) != 1 {
		t.Fatal(hosts, err)
	}
	if diff := cmp.Diff([]string{filepath.Join(dir, "ca.crt")}, hosts[0].ca); diff != "" {
		t.Error(diff)
	}
	want := [][2]string{{filepath.Join(dir, "alone.cert"), ""}, {filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")}}
	if diff := cmp.Diff(want, hosts[0].client); diff != "" {
		t.Error(diff)
	}
}

// The hosts of an accepted file end with the registry or its server, and each has a URL that can be
// requested.
func FuzzHostsTOML(f *testing.F) {
	for _, s := range []string{
		"", "server=\"x\"", "[host.\"http://a\"]\ncapabilities=[\"pull\"]", "[host.a.header]\nb=[\"c\"]", "host={a={}}", "host.a.ca=\"b\"", "[[host]]", "client=[[\"a\",\"b\"]]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		hosts, _, err := parseHosts(data, "/dir", "registry.example")
		if err != nil {
			return
		}
		if len(hosts) == 0 {
			t.Fatal("no host")
		}
		for _, h := range hosts {
			if h.base.Scheme != "http" && h.base.Scheme != "https" || h.base.Host == "" {
				t.Fatalf("host has the URL %q", h.base.String())
			}
			if _, err := http.NewRequest(http.MethodGet, h.base.String()+"/x", nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}
