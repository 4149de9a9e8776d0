package images

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/testimage"
)

// NodeTests are substitutes, with the same repository paths and tags, for the images that the
// Kubernetes project's node tests use. dir has the built Pause, agnhost is the path of that
// program, and source is the directory of its source.
func NodeTests(dir, agnhost, source string) ([]testimage.Image, error) {
	const e2e = "e2e-test-images/"
	served, err := registryFiles(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		served = append(served, testimage.File{Path: "/" + name, Host: filepath.Join(source, "porter", name)})
	}
	list := []testimage.Image{
		{Names: []string{"pause:3.10.2"}, Layers: Pause().Layers, Config: Pause().Config},
		{Names: []string{e2e + "busybox:1.37.0-2"}, Layers: dynamic("busybox"), Config: shell()},
		{Names: []string{e2e + "busybox:1.36.1-1"}, Layers: dynamic("busybox-1.36"), Config: shell()},
		{Names: []string{e2e + "nonroot:1.5"}, Layers: dynamic("nonroot"), Config: user("1234")},
		{Names: []string{e2e + "ipc-utils:1.4"}, Layers: append(dynamic("ipc-utils"), testimage.Layer{Packages: []string{"util-linux"}}), Config: shell()},
		{Names: []string{e2e + "nginx:1.27.0-2"}, Layers: append(nginx(80), mark("nginx-1.27")), Config: nginxConfig()},
		{Names: []string{e2e + "nginx:1.28.0-2"}, Layers: append(nginx(80), mark("nginx-1.28")), Config: nginxConfig()},
		{Names: []string{e2e + "nonewprivs:1.4"}, Layers: noNewPrivs(), Config: noNewPrivsConfig()},
		{Names: []string{e2e + "glibc-dns-testing:2.1.1"}, Layers: debian(), Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"bash"}}},
		{Names: []string{e2e + "kitten:1.8"}, Layers: append(dynamic("kitten"), kitten()), Config: shell()},
	}
	for _, version := range []string{"2.55", "2.66.1"} {
		list = append(list, testimage.Image{
			Names:  []string{e2e + "agnhost:" + version},
			Layers: append(dynamic("agnhost"), agnhostTools(), agnhostProgram(agnhost, version, served)),
			Config: ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}},
		})
	}
	return list, nil
}

// dynamic is busybox with a mark. The shell of the static build would run its own applet instead of
// a masked program.
func dynamic(name string) []testimage.Layer {
	return []testimage.Layer{
		userland("busybox"),
		{Packages: []string{"bash"}, Files: []testimage.File{
			{Path: "/bin/sh", C: "e2e/images/src/sh.c"},
			{Path: "/bin/sysctl", Symlink: "/sbin/sysctl"},
			{Path: "/bin/top", Symlink: "/usr/bin/top"},
			{Path: "/usr/bin/nmeter", Content: nmeter, Mode: 0o755},
		}},
		mark(name),
	}
}

// nmeter replaces the applet, which Debian's busybox does not have, for the only use in the specs:
// the time of day in milliseconds, by nmeter -d0 %3t.
const nmeter = `#!/bin/bash
now=$EPOCHREALTIME
fraction=${now#*.}
printf '%(%H:%M:%S)T.%s\n' "${now%.*}" "${fraction:0:3}"
`

// mark is a layer that makes an image unique.
func mark(name string) testimage.Layer {
	return testimage.Layer{Files: []testimage.File{{Path: "/etc/mica-image", Content: name + "\n"}}}
}

// debian has the C library's name service and tools that use it.
func debian() []testimage.Layer {
	return []testimage.Layer{{
		Packages: []string{"base-files", "base-passwd", "bash", "coreutils", "dash", "grep", "hostname", "libc-bin", "sed"},
		Files: []testimage.File{
			{Path: "/etc/passwd", Content: passwd},
			{Path: "/etc/group", Content: group},
			{Path: "/etc/nsswitch.conf", Content: "hosts: files dns\n"},
		},
	}}
}

// kitten is the file that specs look for in an image that is mounted as a volume.
func kitten() testimage.Layer {
	return testimage.Layer{Files: []testimage.File{
		{Path: "/data.json", Content: "{\"image\": \"kitten.jpg\"}\n"},
		{Path: "/etc/os-release", Content: "NAME=\"Alpine Linux\"\nID=alpine\n"},
	}}
}

// agnhostTools are the programs that specs run in agnhost's image.
func agnhostTools() testimage.Layer {
	return testimage.Layer{
		Packages: []string{"bash", "bind9-dnsutils", "curl", "iproute2", "netcat-openbsd", "util-linux"},
		Files:    []testimage.File{{Path: "/usr/bin/nc", Symlink: "/bin/nc.openbsd"}},
	}
}

func agnhostProgram(program, version string, served []testimage.File) testimage.Layer {
	return testimage.Layer{Files: append([]testimage.File{
		{Path: "/agnhost", Host: program, Mode: 0o755},
		{Path: "/agnhost-2", Symlink: "agnhost"},
		{Path: "/uploads", Dir: true},
		{Path: "/etc/passwd", Content: passwd + "user-defined-in-image:x:1000:1000::/home:/bin/sh\n"},
		{Path: "/etc/group", Content: group + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"},
		{Path: "/etc/mica-image", Content: "agnhost " + version + "\n"},
	}, served...)}
}

// registryFiles are the images that agnhost's registry serves as pause:testing.
func registryFiles(dir string) ([]testimage.File, error) {
	const root = "/var/registry/pause/"
	blobs := filepath.Join(dir, "registry/blobs")
	found, err := Registry(dir).Digest("pause", "3.10")
	if err != nil {
		return nil, fmt.Errorf("find image of agnhost's registry: %w", err)
	}
	path := func(kind string, d digest.Digest) string {
		return root + kind + "/" + d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
	}
	host := func(d digest.Digest) string { return filepath.Join(blobs, d.Algorithm().String(), d.Encoded()) }
	text, err := os.ReadFile(host(found))
	if err != nil {
		return nil, fmt.Errorf("read image of agnhost's registry: %w", err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, fmt.Errorf("read image of agnhost's registry: %w", err)
	}
	files := []testimage.File{
		{Path: root + "manifests/testing", Content: found.String() + "\n"},
		{Path: path("manifests", found), Content: string(text)},
	}
	for _, blob := range append(manifest.Layers, manifest.Config) {
		files = append(files, testimage.File{Path: path("blobs", blob.Digest), Host: host(blob.Digest)})
	}
	return files, nil
}
