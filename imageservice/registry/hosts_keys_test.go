package registry

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2/textlogger"
)

// Every key of containerd's hosts.toml, in every form that containerd accepts, for the server and
// for a host.
func TestEveryKeyOfHostsTOML(t *testing.T) {
	for name, c := range map[string]struct {
		toml  string
		check func(h hostConfig) string // what differs
	}{
		"no capabilities":  {`capabilities = []`, func(h hostConfig) string { return cmp.Diff([]bool{true, true}, []bool{h.pull, h.resolve}) }},
		"all capabilities": {`capabilities = ["pull", "resolve", "push", "referrers"]`, func(h hostConfig) string { return cmp.Diff([]bool{true, true}, []bool{h.pull, h.resolve}) }},
		"other case":       {`capabilities = ["PULL", "Referrers"]`, func(h hostConfig) string { return cmp.Diff([]bool{true, false}, []bool{h.pull, h.resolve}) }},
		"resolve only":     {`capabilities = ["resolve"]`, func(h hostConfig) string { return cmp.Diff([]bool{false, true}, []bool{h.pull, h.resolve}) }},
		"referrers only":   {`capabilities = ["referrers"]`, func(h hostConfig) string { return cmp.Diff([]bool{false, false}, []bool{h.pull, h.resolve}) }},
		"one authority":    {`ca = "ca.pem"`, func(h hostConfig) string { return cmp.Diff([]string{"/dir/ca.pem"}, h.ca) }},
		"two authorities":  {`ca = ["a.pem", "/b.pem"]`, func(h hostConfig) string { return cmp.Diff([]string{"/dir/a.pem", "/b.pem"}, h.ca) }},
		"no authority":     {`ca = []`, func(h hostConfig) string { return cmp.Diff(0, len(h.ca)) }},
		"one client file":  {`client = "c.pem"`, func(h hostConfig) string { return cmp.Diff([][2]string{{"/dir/c.pem", ""}}, h.client) }},
		"client files":     {`client = ["a.pem", "/b.pem"]`, func(h hostConfig) string { return cmp.Diff([][2]string{{"/dir/a.pem", ""}, {"/b.pem", ""}}, h.client) }},
		"client pairs": {`client = [["a.pem", "a.key"], ["/b.pem", "/b.key"]]`, func(h hostConfig) string {
			return cmp.Diff([][2]string{{"/dir/a.pem", "/dir/a.key"}, {"/b.pem", "/b.key"}}, h.client)
		}},
		"client file, pair": {`client = ["a.pem", ["b.pem", "b.key"]]`, func(h hostConfig) string {
			return cmp.Diff([][2]string{{"/dir/a.pem", ""}, {"/dir/b.pem", "/dir/b.key"}}, h.client)
		}},
		"no client":          {`client = []`, func(h hostConfig) string { return cmp.Diff(0, len(h.client)) }},
		"skip verification":  {`skip_verify = true`, func(h hostConfig) string { return cmp.Diff(true, h.skipVerify) }},
		"keep verification":  {`skip_verify = false`, func(h hostConfig) string { return cmp.Diff(false, h.skipVerify) }},
		"header":             {`header = {x-a = "1", X-B = ["2", "3"]}`, func(h hostConfig) string { return cmp.Diff(http.Header{"X-A": {"1"}, "X-B": {"2", "3"}}, h.header) }},
		"no header":          {`header = {}`, func(h hostConfig) string { return cmp.Diff(0, len(h.header)) }},
		"override path":      {`override_path = true`, func(h hostConfig) string { return cmp.Diff("/base", h.base.Path) }},
		"path":               {`override_path = false`, func(h hostConfig) string { return cmp.Diff("/base/v2", h.base.Path) }},
		"dial time-out":      {`dial_timeout = "1m30s"`, func(h hostConfig) string { return cmp.Diff(90*time.Second, h.dialTimeout) }},
		"empty dial timeout": {`dial_timeout = ""`, func(h hostConfig) string { return cmp.Diff(time.Duration(0), h.dialTimeout) }},
	} {
		t.Run(name, func(t *testing.T) {
			for place, text := range map[string]string{
				"server": "server = \"https://h.example/base\"\n" + c.toml,
				"host":   "[host.\"https://h.example/base\"]\n" + c.toml,
			} {
				hosts, ignored, err := parseHosts([]byte(text), "/dir", "registry.example")
				if err != nil || len(ignored) > 0 {
					t.Errorf("%s: %q ignored, %v", place, ignored, err)
					continue
				}
				if diff := c.check(hosts[0]); diff != "" {
					t.Errorf("%s: %s", place, diff)
				}
			}
		})
	}
}

// Keys of a newer containerd do not break pulls. They are logged once for each content of the file.
func TestUnknownKeysOfHostsTOML(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "registry.example")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hosts.toml")
	var log ignoredKeys
	var out bytes.Buffer
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out)))
	find := func(text string) (hosts []hostConfig, logged string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		hosts, notes, err := findHosts([]string{root}, "registry.example")
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		log.report(logger, notes)
		return hosts, out.String()
	}
	const text = "server = \"https://s.example\"\nretries = 3\n[limits]\nrate = 1\n[host.\"https://m.example\"]\ncapabilities = [\"pull\"]\nweight = 5\n[host.\"https://m.example\".auth]\nuser = \"x\"\n"
	hosts, logged := find(text)
	if len(hosts) != 2 || hosts[0].summary() != "https://m.example/v2 pull mirror" {
		t.Errorf("hosts %v", hosts)
	}
	for _, want := range []string{file, "line 2: retries", "limits", "line 7: host.https://m.example.weight", "auth"} {
		if !strings.Contains(logged, want) {
			t.Errorf("log %q lacks %q", logged, want)
		}
	}
	if _, logged := find(text); logged != "" {
		t.Errorf("logged again: %q", logged)
	}
	if _, logged := find("more = 1\n" + text); !strings.Contains(logged, "more") {
		t.Errorf("the change is not logged: %q", logged)
	}
	if _, logged := find("server = \"https://s.example\"\n"); logged != "" {
		t.Errorf("logged without a reason: %q", logged)
	}
	if _, logged := find(text); logged == "" {
		t.Error("not logged after it has come back")
	}
}

// The error of a pull names a hosts.toml that cannot be read and, for a syntax error, the line.
func TestBadHostsTOMLIsNamed(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "registry.example")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hosts.toml")
	for text, want := range map[string]string{
		"server = \"https://a\"\n\n[host\n":                      "line 3",
		"server = \"https://a\"\nskip_verify = \"yes\"\n":        "line 2",
		"unknown = 1\n\ncapabilities = \"pull\"\n":               "line 3",
		"[host.\"https://a\"]\nclient = [[\"a\",\"b\",\"c\"]]\n": `host "https://a": client`,
		"[host.\"https://a\"]\ndial_timeout = \"soon\"\n":        `host "https://a": dial_timeout`,
		"[host.\"https://a\"]\ncapabilities = [\"teleport\"]\n":  `host "https://a": capability "teleport"`,
		"[host.\"https://a\".header]\nx = 1\n":                   `host "https://a": header "x"`,
		"[host.\"https://a\"]\nca = [\"a\", 1]\n":                `host "https://a": ca`,
		fmt.Sprintf("[host.%q]\n", "https://"):                   `host "https://"`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, _, err := findHosts([]string{root}, "registry.example")
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s and %q", text, err, file, want)
		}
	}
}
