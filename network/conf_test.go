package network

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const (
	listA = `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}`
	listB = `{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}`
	oneC  = `{"cniVersion":"0.3.1","name":"c","type":"bridge"}`
)

func TestLoadConf(t *testing.T) {
	def := &DefaultNetwork{}
	for name, test := range map[string]struct {
		files  map[string]string
		def    *DefaultNetwork
		want   string // the network's name, "" for none
		broken int
	}{
		"empty directory":                 {},
		"empty directory and default":     {def: def, want: "mica"},
		"lexically first":                 {files: map[string]string{"20.conflist": listB, "10.conflist": listA}, def: def, want: "a"},
		"first whatever the extension":    {files: map[string]string{"10.json": listB, "20.conflist": listA, "05.conf": oneC}, want: "c"},
		"other files":                     {files: map[string]string{"10.conflist.bak": listA, "README": "x"}},
		"broken first":                    {files: map[string]string{"10.conflist": `{`, "20.conflist": listB}, want: "b", broken: 1},
		"only broken, default steps back": {files: map[string]string{"10.conflist": `{`}, def: def, broken: 1},
		"empty file":                      {files: map[string]string{"10.conflist": ``}, broken: 1},
		"not an object":                   {files: map[string]string{"10.conflist": `[]`}, broken: 1},
		"no name":                         {files: map[string]string{"10.conflist": `{"plugins":[{"type":"bridge"}]}`}, broken: 1},
		"bad name":                        {files: map[string]string{"10.conflist": `{"name":"../x","plugins":[{"type":"bridge"}]}`}, broken: 1},
		"no plugins":                      {files: map[string]string{"10.conflist": `{"name":"x"}`}, broken: 1},
		"no plugin in the list":           {files: map[string]string{"10.conflist": `{"name":"x","plugins":[]}`}, broken: 1},
		"no type":                         {files: map[string]string{"10.conflist": `{"name":"x","plugins":[{}]}`}, broken: 1},
		"no type in conf":                 {files: map[string]string{"10.conf": `{"name":"x"}`}, broken: 1},
		"type with a path":                {files: map[string]string{"10.conflist": `{"name":"x","plugins":[{"type":"../sh"}]}`}, broken: 1},
		"version of the future":           {files: map[string]string{"10.conflist": `{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"bridge"}]}`}, broken: 1},
		"version that is none":            {files: map[string]string{"10.conflist": `{"cniVersion":"new","name":"x","plugins":[{"type":"bridge"}]}`}, broken: 1},
		"plugins in a directory":          {files: map[string]string{"10.conflist": `{"cniVersion":"1.1.0","name":"d"}`, "d/1.conf": `{"type":"bridge"}`}, want: "d"},
		"a directory named like a file":   {files: map[string]string{"10.conflist/x": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				path := filepath.Join(dir, name)
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must(t, os.WriteFile(path, []byte(text), 0o644))
			}
			def := test.def
			if def != nil {
				d, err := def.complete(t.TempDir())
				must(t, err)
				def = &d
			}
			c := loadConf(dir, def)
			got := ""
			if c.list != nil {
				got = c.list.Name
			}
			if got != test.want || (c.err == nil) != (test.want != "") || len(c.broken) != test.broken {
				t.Errorf("network %q, error %v, broken %v; want %q with %d broken", got, c.err, c.broken, test.want, test.broken)
			}
			for _, err := range c.broken {
				if !strings.HasPrefix(err.Error(), dir) {
					t.Errorf("%v does not begin with its file", err)
				}
			}
			if c.list != nil {
				var inlined struct {
					Plugins                []map[string]any
					LoadOnlyInlinedPlugins bool
				}
				must(t, json.Unmarshal(c.list.Bytes, &inlined))
				if len(inlined.Plugins) != len(c.list.Plugins) || !inlined.LoadOnlyInlinedPlugins {
					t.Errorf("inlined: %s", c.list.Bytes)
				}
			}
		})
	}
}

func TestDefaultNetworkSteps(t *testing.T) {
	n := newNode(t, nil)
	status := func(want string) {
		t.Helper()
		err := n.Status(t.Context())
		switch {
		case want == "" && err != nil:
			t.Errorf("Status = %v", err)
		case want != "" && (err == nil || !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), want)):
			t.Errorf("Status = %v, want ErrUnavailable with %q", err, want)
		}
	}
	network := func() string {
		if c := n.current(); c.list != nil {
			return c.list.Name
		}
		return ""
	}
	status("")
	n.configure("20.conflist", listB)
	if network() != "b" {
		t.Errorf("network %q after a conflist appeared", network())
	}
	n.configure("10.conflist", listA)
	if network() != "a" {
		t.Errorf("network %q after an earlier one appeared", network())
	}
	n.unconfigure("10.conflist")
	n.configure("20.conflist", `{"cniVersion":`)
	status("20.conflist: unexpected end of JSON input")
	if info := n.Info(); !strings.Contains(info.LastLoadStatus, "20.conflist") {
		t.Errorf("LastLoadStatus = %q", info.LastLoadStatus)
	}
	if _, err := n.Add(t.Context(), newPod(t)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Add = %v, want ErrUnavailable", err)
	}
	n.configure("20.conflist", listB)
	status("")
	n.unconfigure("20.conflist")
	if network() != n.opts.Default.Name {
		t.Errorf("network %q after the last conflist went", network())
	}
}

func TestNoNetworkWithoutDefault(t *testing.T) {
	n := newNode(t, func(o *Options) { o.Default = nil })
	if err := n.Status(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "no network configuration in "+n.opts.ConfDir) {
		t.Errorf("Status = %v", err)
	}
	n.configure("10.conflist", listA)
	must(t, n.Status(t.Context()))
	n.unconfigure("10.conflist")
	if err := n.Status(t.Context()); err == nil {
		t.Error("Status is nil after the conflist went")
	}
	must(t, n.RemoveDefault(t.Context()))
}

func TestConfDirGoesAndComes(t *testing.T) {
	n := newNode(t, nil)
	n.configure("10.conflist", listA)
	must(t, os.RemoveAll(n.opts.ConfDir))
	eventually(t, "default network", func() bool { return n.current().source == "" && n.current().err == nil })
	eventually(t, "directory made again", func() bool { _, err := os.Stat(n.opts.ConfDir); return err == nil })
	n.configure("10.conflist", listB)
	if c := n.current(); c.list == nil || c.list.Name != "b" {
		t.Errorf("network after the directory came again: %+v", c)
	}
}

func TestPluginDirectoryIsWatched(t *testing.T) {
	n := newNode(t, nil)
	dir := filepath.Join(n.opts.ConfDir, "d")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "1.conf"), []byte(`{"type":"bridge"}`), 0o644))
	n.configure("10.conflist", `{"cniVersion":"1.1.0","name":"d"}`)
	n.configure("d/2.conf", `{"type":"portmap"}`)
	if c := n.current(); c.list == nil || len(c.list.Plugins) != 2 {
		t.Errorf("%+v", c)
	}
}

func TestInfo(t *testing.T) {
	n := newNode(t, nil)
	n.configure("05.conflist", "{")
	n.configure("10.conflist", listA)
	info := n.Info()
	if !strings.HasPrefix(info.LastLoadStatus, "OK, but ignored: ") || !strings.Contains(info.LastLoadStatus, "05.conflist") {
		t.Errorf("LastLoadStatus = %q", info.LastLoadStatus)
	}
	var got struct {
		PluginConfDir string
		Networks      []struct {
			IFName string
			Config struct {
				Name    string
				Plugins []struct{ Network struct{ Type string } }
			}
		}
	}
	must(t, json.Unmarshal(info.Config, &got))
	if got.PluginConfDir != n.opts.ConfDir || len(got.Networks) != 1 || got.Networks[0].IFName != "eth0" ||
		got.Networks[0].Config.Name != "a" || got.Networks[0].Config.Plugins[0].Network.Type != "bridge" {
		t.Errorf("Config = %s", info.Config)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	prefix := netip.MustParsePrefix
	for name, opts := range map[string]Options{
		"nothing":        {},
		"no cache":       {ConfDir: dir},
		"name":           {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Name: "a b"}},
		"bridge":         {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Bridge: "longer-than-15-bytes"}},
		"small subnet":   {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Subnet: prefix("10.0.0.0/31")}},
		"host bits":      {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Subnet: prefix("10.0.0.1/24")}},
		"wrong family":   {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Subnet: prefix("fd00::/64")}},
		"wrong family 6": {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{Subnet6: prefix("10.0.0.0/24")}},
		"MTU":            {ConfDir: dir, CacheDir: dir, Default: &DefaultNetwork{MTU: -1}},
	} {
		if n, err := Open(t.Context(), opts); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: Open = %v, %v", name, n, err)
		}
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(t.Context(), Options{ConfDir: file, CacheDir: dir}); err == nil {
		t.Error("Open of a file as directory succeeded")
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	templateText := `{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"bridge","first":"{{.PodCIDR}}","all":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}"{{$r}}"{{end}}],"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}"{{$r}}"{{end}}]}]}`
	file := filepath.Join(t.TempDir(), "template")
	must(t, os.WriteFile(file, []byte(templateText), 0o600))
	n := newNode(t, func(o *Options) { o.ConfTemplate = file })
	written := filepath.Join(n.opts.ConfDir, templateFile)

	must(t, n.UpdateRuntimeConfig(t.Context(), ""))
	for _, bad := range []string{"x", "10.0.0.0", "10.0.0.0/24,", "10.0.0.0/24,y"} {
		if err := n.UpdateRuntimeConfig(t.Context(), bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if left := files(t, n.opts.ConfDir); len(left) != 0 {
		t.Errorf("files written: %v", left)
	}
	for _, cidr := range []string{"10.5.0.0/24", "10.1.0.0/24, fd01::/64,10.2.0.0/24"} { // the second replaces the first
		must(t, n.UpdateRuntimeConfig(t.Context(), cidr))
		n.awaitConf()
	}
	var got struct {
		Name    string
		Plugins []struct {
			First       string
			All, Routes []string
		}
	}
	must(t, json.Unmarshal([]byte(read(t, written)), &got))
	p := got.Plugins[0]
	if diff := cmp.Diff([]string{"10.1.0.0/24", "10.1.0.0/24", "fd01::/64", "10.2.0.0/24", "0.0.0.0/0", "::/0"}, append(append([]string{p.First}, p.All...), p.Routes...)); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	if c := n.current(); c.list.Name != "cluster" || c.source != written {
		t.Errorf("loaded %s from %s", c.list.Name, c.source)
	}
	// A configuration from another source is left alone.
	must(t, os.Remove(written))
	n.configure("10-a.conflist", listA)
	must(t, n.UpdateRuntimeConfig(t.Context(), "10.3.0.0/24"))
	if left := files(t, n.opts.ConfDir); len(left) != 1 {
		t.Errorf("files: %v", left)
	}
	// A template that renders no valid conflist is not written.
	must(t, os.Remove(filepath.Join(n.opts.ConfDir, "10-a.conflist")))
	must(t, os.WriteFile(file, []byte(`{"name":"{{.PodCIDR}}"`), 0o600))
	if err := n.UpdateRuntimeConfig(context.Background(), "10.3.0.0/24"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("bad template: %v", err)
	}
	if left := files(t, n.opts.ConfDir); len(left) != 0 {
		t.Errorf("files: %v", left)
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"1k": 1000, "10M": 10e6, "1Gi": 1 << 30, "1P": 1e15,
		"999": 0, "2P": 0, "-1M": 0, "fast": 0, "": 0,
	} {
		got, err := parseRate(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}
