package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testregistry"
)

// oddRegistry serves images that no usual tool builds.
type oddRegistry struct {
	f        *fixture
	registry *testregistry.Registry
	addr     string
	busybox  []byte
}

func (f *fixture) oddImages() *oddRegistry {
	f.t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		f.t.Skip(err)
	}
	o := &oddRegistry{f: f, registry: testregistry.New(testregistry.Options{}), busybox: busybox}
	server, err := o.registry.Start("127.0.0.1:0")
	f.no(err)
	f.t.Cleanup(func() { _ = server.Close() })
	o.addr = server.Addr
	hosts := filepath.Join(f.Data, "certs.d", server.Addr)
	f.no(os.MkdirAll(hosts, 0o755))
	f.no(os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", "http://"+server.Addr), 0o644))
	return o
}

// pull makes an image of busybox with additional files and a configuration. It pulls the image and
// returns its name. A path that ends in @ is a symbolic link.
func (o *oddRegistry) pull(name string, config ocispec.ImageConfig, files map[string]string) string {
	o.f.t.Helper()
	layer := o.layer(files)
	diff, err := o.registry.PutBlob(layer)
	o.f.no(err)
	text, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}},
	})
	o.f.no(err)
	id, err := o.registry.PutBlob(text)
	o.f.no(err)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: int64(len(text))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: diff, Size: int64(len(layer))}},
	})
	o.f.no(err)
	_, err = o.registry.PutManifest("odd/"+name, "v1", ocispec.MediaTypeImageManifest, manifest)
	o.f.no(err)
	image := o.addr + "/odd/" + name + ":v1"
	o.f.pull(image)
	return image
}

func (o *oddRegistry) layer(files map[string]string) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	write := func(h tar.Header, content []byte) {
		h.Size, h.Mode = int64(len(content)), 0o755
		o.f.no(w.WriteHeader(&h))
		_, err := w.Write(content)
		o.f.no(err)
	}
	write(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg}, o.busybox)
	for _, applet := range strings.Fields("sh id env cat ls readlink echo grep test stat touch") {
		write(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	for name, content := range files {
		if link, ok := strings.CutSuffix(name, "@"); ok {
			write(tar.Header{Name: link, Typeflag: tar.TypeSymlink, Linkname: content}, nil)
			continue
		}
		write(tar.Header{Name: name, Typeflag: tar.TypeReg}, []byte(content))
	}
	o.f.no(w.Close())
	return out.Bytes()
}

// An image cannot map a numeric user or group to another one by a name that consists of digits.
func TestOddUsers(t *testing.T) {
	f := start(t)
	files := map[string]string{"etc/passwd": "1000:x:0:0::/:/bin/sh\n", "etc/group": "2000:x:0:\nroot:x:0:1000\n"}
	image := f.oddImages().pull("users", ocispec.ImageConfig{User: "1000", Env: []string{"PATH=/bin"}}, files)
	p := f.runPod(f.podConfig())
	number := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for name, test := range map[string]struct {
		security *security
		want     string // user, group, and the number of supplementary groups
		uid, gid int64
	}{
		"user of the image": {&security{}, "1000 0 1 groups", 1000, 0},
		"run_as_user":       {&security{RunAsUser: number(1000)}, "1000 0 1 groups", 1000, 0},
		"run_as_group":      {&security{RunAsUser: number(1234), RunAsGroup: number(2000)}, "1234 2000 0 groups", 1234, 2000},
	} {
		t.Run(name, func(t *testing.T) {
			config := f.containerConfig(image, "sh", "-c", "while read field a b; do case $field in Uid:|Gid:) echo -n \"${a} \" ;; Groups:) set -- $a $b; echo $# groups ;; esac; done </proc/self/status")
			test.security.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
			config.Linux.SecurityContext = test.security
			id := f.start(p, config)
			user := f.await(id).GetUser().GetLinux()
			if got := strings.TrimSpace(text(f.log(p, config))); got != test.want || user.GetUid() != test.uid || user.GetGid() != test.gid {
				t.Errorf("printed %q, and the status says %v, want %q", got, user, test.want)
			}
		})
	}
	if img := f.imageStatus(image); img.GetUid().GetValue() != 1000 || img.GetUid() == nil || img.GetUsername() != "" {
		t.Errorf("image status: uid %v, username %q", img.GetUid(), img.GetUsername())
	}
}

// Images with an unusual configuration run if dockerd and containerd run them.
func TestOddConfig(t *testing.T) {
	f := start(t)
	o := f.oddImages()
	p := f.runPod(f.podConfig())
	config := ocispec.ImageConfig{
		Env: []string{"PATH=/bin", "FOO", "", "=x", "BAR=1"}, Entrypoint: []string{""}, Cmd: []string{"sh", "-c", "env | grep -c .; env | grep -E '^(FOO|BAR)'"},
		WorkingDir: "relative", StopSignal: "SIGNONSENSE", ExposedPorts: map[string]struct{}{"x/y": {}}, Labels: map[string]string{"": ""},
		Volumes: map[string]struct{}{"": {}, "data": {}, "/data/": {}, "/sys/fs/cgroup": {}},
	}
	image := o.pull("config", config, nil)
	if got := f.output(p, f.containerConfig(image)); !strings.HasSuffix(got, "\nBAR=1\n") || strings.Contains(got, "FOO") {
		t.Errorf("printed %q", got)
	}
}

// Impossible volumes are rejected with their name, before anything is created.
func TestOddVolumes(t *testing.T) {
	f := start(t)
	o := f.oddImages()
	p := f.runPod(f.podConfig())
	many := map[string]struct{}{}
	for i := range 1000 {
		many[fmt.Sprintf("/v%d", i)] = struct{}{}
	}
	for name, test := range map[string]struct {
		volumes map[string]struct{}
		says    string
	}{
		"root": {map[string]struct{}{"/..": {}}, `volume "/.." of the image`},
		"proc": {map[string]struct{}{"/proc": {}}, `volume "/proc" of the image`},
		"dev":  {map[string]struct{}{"/dev": {}}, `volume "/dev" of the image hides device files`},
		"many": {many, "1000 volumes of the image, the limit is 128"},
	} {
		image := o.pull("volumes-"+name, ocispec.ImageConfig{Volumes: test.volumes, Env: []string{"PATH=/bin"}}, nil)
		_, err := f.Runtime.CreateContainer(f.ctx, p.id, f.containerConfig(image, "true"), p.config)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want InvalidArgument and %q", name, err, test.says)
		}
	}
}

// Images built from a package store have a link at /etc. Mica reads users from the target
// directory, and the pod's files appear there, also with a read-only root.
func TestOddEtc(t *testing.T) {
	f := start(t)
	o := f.oddImages()
	p := f.runPod(f.podConfig())
	config := ocispec.ImageConfig{User: "me", Env: []string{"PATH=/bin"}}
	image := o.pull("etc", config, map[string]string{
		"etc@": "/store/deep/etc", "store/deep/etc/passwd": "me:x:5:6::/:/bin/sh\n", "store/deep/etc/hosts@": "../../nowhere",
	})
	for _, readOnly := range []bool{false, true} {
		c := f.containerConfig(image, "sh", "-c", "id -u; readlink /etc; cat /etc/hostname; grep -c localhost /store/deep/etc/hosts")
		c.Linux.SecurityContext.ReadonlyRootfs = readOnly
		if got, want := f.output(p, c), "5\n/store/deep/etc\n"+p.config.GetHostname()+"\n2\n"; got != want {
			t.Errorf("read-only %t: printed %q, want %q", readOnly, got, want)
		}
	}
	links := o.pull("links", ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, map[string]string{"proc@": "/store", "sys@": "store", "dev@": "/store", "store/x": ""})
	if got := f.output(p, f.containerConfig(links, "sh", "-c", "test -c /dev/null && test -d /sys/kernel && readlink /proc/self >/dev/null && echo fine")); got != "fine\n" {
		t.Errorf("with links for mount points: printed %q", got)
	}
}
