package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/micarun/mica/network"
)

func equal(t *testing.T, got, want Config) {
	t.Helper()
	opts := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("configuration differs (-want +got):\n%s", diff)
	}
}

// write makes a file tree and returns the path of its config.toml.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.toml")
}

func TestDefaultFileSaysTheDefault(t *testing.T) {
	got, err := Load(write(t, map[string]string{"config.toml": string(DefaultFile())}))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Default())
}

var commentedKey = regexp.MustCompile(`(?m)^#(\[|[a-z_0-9]+ = )`)

// The file names every key. With all keys uncommented it is valid, and the daemon's own keys have
// the values of Default.
func TestDefaultFileIsComplete(t *testing.T) {
	all := commentedKey.ReplaceAllString(string(DefaultFile()), "$1")
	got, err := Load(write(t, map[string]string{"config.toml": all}))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	if got.DataRoot != want.DataRoot || got.StateDir != want.StateDir || got.Log != want.Log || got.Metrics != want.Metrics {
		t.Errorf("the file shows other defaults: %+v", got)
	}
	if got.Resolved().CRI.Socket != want.Resolved().CRI.Socket {
		t.Errorf("cri.socket is shown as %s", got.CRI.Socket)
	}
	for _, key := range Keys() {
		table, name := "", key
		if i := strings.LastIndexByte(key, '.'); i >= 0 {
			table, name = strings.ReplaceAll(key[:i], "*", "crun"), key[i+1:]
		}
		if !strings.Contains(section(all, table), "\n"+name+" = ") {
			t.Errorf("default.toml does not show %s", key)
		}
	}
}

// section returns the part of a TOML file below a table's header.
func section(file, table string) string {
	if table != "" {
		_, rest, ok := strings.Cut(file, "\n["+table+"]\n")
		if !ok {
			return ""
		}
		file = "\n" + rest
	}
	head, _, _ := strings.Cut(file, "\n[")
	return head
}

func TestDumpIsReadBack(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"default":       func(*Config) {},
		"empty network": func(c *Config) { c.Network.Default = &network.DefaultNetwork{} },
		"quiet":         func(c *Config) { c.Log.Level = 0 },
		"all kinds": func(c *Config) {
			c.CRI.StopTimeout = 90 * time.Second
			c.Pods.ShmSize = 1 << 30
			c.Images.Pinned = []string{"registry.k8s.io/*"}
			c.Network.Default = &network.DefaultNetwork{Subnet: netip.MustParsePrefix("10.9.0.0/16")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := Default()
			change(&want)
			dump, err := want.Dump()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Load(write(t, map[string]string{"config.toml": string(dump)}))
			if err != nil {
				t.Fatalf("%v in\n%s", err, dump)
			}
			equal(t, got, want)
		})
	}
}

func TestLaterFilesWin(t *testing.T) {
	got, err := Load(write(t, map[string]string{
		"config.toml": `
data_root = "/a"
default_runtimes = ["runc"]
[log]
level = 1
format = "json"
[network.default]
`,
		"conf.d/20-b.toml":  "data_root = \"/c\"\n[cri]\nstop_timeout = \"1m30s\"\n",
		"conf.d/10-a.toml":  "data_root = \"/b\"\n[log]\nlevel = 4\n[images]\npinned = [\"x\", \"y\"]\n",
		"conf.d/30-c.toml":  "[images]\npinned = [\"z\"]\n[runtimes.kata]\npath = \"/opt/kata\"\n",
		"conf.d/ignored.md": "not read",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.DataRoot = "/c"
	want.DefaultRuntimes = []string{"runc"}
	want.Log = Log{Level: 4, Format: "json"}
	want.CRI.StopTimeout = 90 * time.Second
	want.Images.Pinned = []string{"z"}
	want.Network.Default = &network.DefaultNetwork{}
	kata := want.Runtimes["kata"]
	kata.Path = "/opt/kata"
	want.Runtimes["kata"] = kata
	equal(t, got, want)
}

func TestBadFilesAreRefused(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"syntax":             {"data_root = \n", "config.toml:1:13: "},
		"unknown key":        {"\ndata_rot = \"/x\"\n", "config.toml:2:1: unknown key data_rot"},
		"unknown table":      {"[image]\nx = 1\n", "config.toml:1:2: unknown key image"},
		"unknown in table":   {"[cri]\n  sokcet = \"/x\"\n", "config.toml:2:3: unknown key cri.sokcet"},
		"unknown in runtime": {"[runtimes.runc]\nroot = \"/x\"\n", "config.toml:2:1: unknown key runtimes.runc.root"},
		"derived key":        {"[images]\nroot = \"/x\"\n", "config.toml:2:1: unknown key images.root"},
		"wrong kind":         {"[log]\nlevel = \"4\"\n", "config.toml:2:9: log.level: wrong type: got string, want int"},
		"unit missing":       {"[cri]\nstop_timeout = \"30\"\n", "config.toml:2:16: "},
		"number as duration": {"[cri]\nstop_timeout = 30\n[log]\n", "config.toml:2: \"30\" is not a duration"},
		"negative duration":  {"[cri]\nstop_timeout = \"-3s\"\n", "negative duration"},
		"relative root":      {`data_root = "var"`, "data_root: \"var\" is not an absolute path"},
		"no runtime":         {"default_runtimes = []\n", "default_runtimes: names no runtime"},
		"strange runtime":    {"default_runtimes = [\"kata\"]\n", `default_runtimes: "kata" is not in [runtimes]`},
		"runtime type":       {"[runtimes.runc]\ntype = \"podman\"\n", "runtimes.runc.type: \"podman\""},
		"level":              {"[log]\nlevel = 11\n", "log.level: 11"},
		"format":             {"[log]\nformat = \"xml\"\n", "log.format: \"xml\""},
		"metrics":            {"[metrics]\naddress = \":80\"\n", "metrics.address: \":80\""},
		"driver":             {"[cgroups]\ndriver = \"x\"\n", "cgroups.driver: \"x\""},
		"open streaming":     {"[cri.streaming]\naddress = \"192.0.2.1:1\"\n", "cri.streaming.address: 192.0.2.1 is not loopback"},
		"long socket":        {"[cri]\nsocket = \"/" + strings.Repeat("x", 110) + "\"\n", "cri.socket: "},
		"long state_dir":     {"state_dir = \"/" + strings.Repeat("x", 92) + "\"\n[cri]\nsocket = \"/short\"\n", "state_dir: "},
		"long NRI socket":    {"[nri]\nsocket = \"/" + strings.Repeat("x", 107) + "\"\n", "nri.socket: "},
		"ulimits":            {"[pods]\nulimits = [\"files=1\"]\n", "pods.ulimits: "},
		"images":             {"[images]\nplatform = \"a/b/c/d/e\"\n", "images.platform"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, map[string]string{"config.toml": tc.file}))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := Load(write(t, map[string]string{
		"config.toml":   "a = 1\nb = 2\n",
		"conf.d/x.toml": "c = 3\n",
	}))
	if err == nil {
		t.Fatal("unknown keys are accepted")
	}
	for _, want := range []string{"config.toml:1:1: unknown key a", "config.toml:2:1: unknown key b", "x.toml:1:1: unknown key c"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want also %s", err, want)
		}
	}
}

func TestAbsentFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "config.toml")); err == nil {
		t.Error("Load of a named file that does not exist succeeded")
	}
}

func TestResolved(t *testing.T) {
	c := Default()
	c.DataRoot, c.StateDir = "/d", "/s"
	c.Network.Default = &network.DefaultNetwork{}
	r := c.Resolved()
	for got, want := range map[string]string{
		r.CRI.Socket:              "/s/mica.sock",
		r.AdminSocket():           "/s/admin.sock",
		r.Images.Root:             "/d",
		r.Overlay().Root:          "/d",
		r.Keeper.Dir:              "/s/keeper",
		r.Network.CacheDir:        "/d/network",
		r.Network.Default.DataDir: "/d/network/leases",
		r.Runtimes["runc"].Root:   "/s/runtimes/runc",
		r.Runtimes["runc"].Name:   "runc",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if c.Runtimes["runc"].Root != "" || c.Network.Default.DataDir != "" {
		t.Error("Resolved changed its receiver")
	}
}

func TestChanges(t *testing.T) {
	parse := func(text string) Config {
		c := Default()
		view := newView(c)
		if problems := decode(view, "x", []byte(text)); len(problems) > 0 {
			t.Fatal(errors.Join(problems...))
		}
		transfer(reflect.ValueOf(&c).Elem(), view.Elem())
		return c.Resolved()
	}
	for name, tc := range map[string]struct {
		a, b string
		want []string
	}{
		"none":           {"[log]\nlevel = 3", "[log]\nlevel = 3", nil},
		"some":           {"", "data_root = \"/x\"\n[images]\npinned = [\"a\"]\nstall_timeout = \"1s\"", []string{"data_root", "images.pinned", "images.stall_timeout"}},
		"what follows":   {"", "state_dir = \"/s\"", []string{"state_dir", "cri.socket"}},
		"a new runtime":  {"", "[runtimes.kata]\npath = \"kata\"", []string{"runtimes.kata"}},
		"within a table": {"[runtimes.kata]\npath = \"a\"", "[runtimes.kata]\npath = \"b\"", []string{"runtimes.kata.path"}},
		"a new table":    {"", "[network.default]\nname = \"n\"", []string{"network.default"}},
		"in that table":  {"[network.default]\nname = \"n\"", "[network.default]\nname = \"n\"\nsubnet = \"10.0.0.0/8\"", []string{"network.default.subnet"}},
	} {
		if got := Changes(parse(tc.a), parse(tc.b)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"Socket": "socket", "CertsDirs": "certs_dirs", "TLSCert": "tls_cert", "MTU": "mtu",
		"Subnet6": "subnet6", "Subnet6Mask": "subnet6_mask", "MaxMessageBytes": "max_message_bytes", "PodID": "pod_id",
	} {
		if got := snake(in); got != want {
			t.Errorf("snake(%s) = %s, want %s", in, got, want)
		}
	}
}

// Every hidden key exists; otherwise a renamed field would silently become a key.
func TestHiddenKeysExist(t *testing.T) {
	var all []string
	var walk func(reflect.Type, string)
	walk = func(t reflect.Type, key string) {
		switch t.Kind() {
		case reflect.Pointer:
			walk(t.Elem(), key)
		case reflect.Map:
			walk(t.Elem(), join(key, "*"))
		case reflect.Struct:
			for i := range t.NumField() {
				f := t.Field(i)
				if f.IsExported() {
					walk(f.Type, join(key, snake(f.Name)))
				}
			}
		default: // a value, which has no keys below
		}
		all = append(all, key)
	}
	walk(reflect.TypeFor[Config](), "")
	for _, key := range []string{
		"images.root", "network.cache_dir", "network.default.data_dir", "pods.data_dir", "pods.state_dir",
		"pods.version", "keeper.dir", "runtimes.*.name", "runtimes.*.root",
	} {
		if !hidden(key) || !slices.Contains(all, key) {
			t.Errorf("%s is not hidden, or is no field", key)
		}
	}
}
