package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// memory is a Store in memory.
type memory struct {
	blobs map[digest.Digest][]byte
	tags  map[string]digest.Digest
	fail  error // of every blob
}

func (m *memory) PutBlobFrom(r io.Reader) (digest.Digest, error) {
	if m.fail != nil {
		return "", m.fail
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	d := digest.FromBytes(data)
	m.blobs[d] = data
	return d, nil
}

func (m *memory) PutManifest(repo, tag, _ string, data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	m.blobs[d] = data
	if tag != "" {
		m.tags[repo+":"+tag] = d
	}
	return d, nil
}

func build(t *testing.T, dir string, image Image) (Built, *memory) {
	t.Helper()
	store := &memory{blobs: map[digest.Digest][]byte{}, tags: map[string]digest.Digest{}}
	builder, err := Open(t.Context(), Options{Dir: dir, Root: "../..", Store: store})
	if err != nil {
		t.Fatal(err)
	}
	built, err := builder.Build(t.Context(), image)
	if err := errors.Join(err, builder.Close()); err != nil {
		t.Fatal(err)
	}
	return built, store
}

func files(compressions ...Compression) Image {
	image := Image{Names: []string{"test/files:one", "test/files:two"}}
	for _, c := range compressions {
		image.Layers = append(image.Layers, Layer{Compression: c, Files: []File{
			{Path: "/etc/name", Content: "content\n"},
			{Path: "/bin/tool", Content: "#!\n", Mode: 0o4755, UID: 1, GID: 2},
			{Path: "/bin/other", Hardlink: "/bin/tool"},
			{Path: "/tmp", Dir: true, Mode: 0o1777},
			{Path: "/link", Symlink: "/etc/name"},
		}})
	}
	return image
}

// The same description gives the same bytes, regardless of the directory.
func TestBuildIsDeterministic(t *testing.T) {
	first, _ := build(t, t.TempDir(), files(Gzip, Zstd, Uncompressed))
	second, _ := build(t, t.TempDir(), files(Gzip, Zstd, Uncompressed))
	if first.Manifest.Digest != second.Manifest.Digest {
		t.Errorf("manifests are %s and %s", first.Manifest.Digest, second.Manifest.Digest)
	}
}

func TestBuildUsesWhatItBuiltBefore(t *testing.T) {
	dir := t.TempDir()
	first, _ := build(t, dir, files(Gzip))
	second, store := build(t, dir, files(Gzip))
	if first.Manifest.Digest != second.Manifest.Digest {
		t.Errorf("manifests are %s and %s", first.Manifest.Digest, second.Manifest.Digest)
	}
	if _, ok := store.blobs[second.Layers[0].Digest]; ok {
		t.Error("the layer was built again")
	}
}

// A file of this machine gives the same layer whatever its path, and another layer if its content
// changes.
func TestHostFilesCountByContent(t *testing.T) {
	dir, place := t.TempDir(), t.TempDir()
	layer := func(name, content string) digest.Digest {
		file := filepath.Join(place, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		built, _ := build(t, dir, Image{Names: []string{"a:b"}, Layers: []Layer{{Files: []File{{Path: "/x", Host: file}}}}})
		return built.Layers[0].Digest
	}
	first := layer("one", "content")
	if moved := layer("two", "content"); moved != first {
		t.Errorf("the same content at another path gives %s, want %s", moved, first)
	}
	if changed := layer("one", "changed"); changed == first {
		t.Error("other content is the same layer")
	}
}

func TestLayerContent(t *testing.T) {
	built, store := build(t, t.TempDir(), files(Gzip, Zstd, Uncompressed))
	if store.tags["test/files:one"] != built.Manifest.Digest || store.tags["test/files:two"] != built.Manifest.Digest {
		t.Errorf("tags are %v, want both to name %s", store.tags, built.Manifest.Digest)
	}
	for n, layer := range built.Layers {
		blob := store.blobs[layer.Digest]
		if int64(len(blob)) != layer.Size {
			t.Errorf("layer %d has %d bytes, its descriptor says %d", n, len(blob), layer.Size)
		}
		plain := unpack(t, []Compression{Gzip, Zstd, Uncompressed}[n], blob)
		if digest.FromBytes(plain) != built.DiffIDs[n] {
			t.Errorf("layer %d: content does not have the diff ID", n)
		}
		checkEntries(t, plain)
	}
}

func unpack(t *testing.T, c Compression, blob []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(blob)
	var err error
	switch c {
	case Gzip:
		r, err = gzip.NewReader(r)
	case Zstd:
		r, err = zstd.NewReader(r)
	case Uncompressed:
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func checkEntries(t *testing.T, plain []byte) {
	t.Helper()
	got := map[string]tar.Header{}
	for in := tar.NewReader(bytes.NewReader(plain)); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[header.Name]; twice {
			t.Errorf("the layer has %s twice", header.Name)
		}
		got[header.Name] = *header
	}
	if tool := got["bin/tool"]; tool.Mode != 0o4755 || tool.Uid != 1 || tool.Gid != 2 || !tool.ModTime.Equal(epoch()) {
		t.Errorf("bin/tool is %v", tool)
	}
	if other := got["bin/other"]; other.Typeflag != tar.TypeLink || other.Linkname != "bin/tool" {
		t.Errorf("bin/other is %v", other)
	}
	for _, dir := range []string{"etc/", "bin/", "tmp/"} {
		if got[dir].Typeflag != tar.TypeDir {
			t.Errorf("%s is %v, want a directory", dir, got[dir])
		}
	}
}

func TestBadDescriptions(t *testing.T) {
	docker := files(Zstd)
	docker.Docker = true
	tests := map[string]Image{
		"no name":           {Layers: files(Gzip).Layers},
		"no layer":          {Names: []string{"a:b"}},
		"no tag":            {Names: []string{"host:5000/a"}, Layers: files(Gzip).Layers},
		"zstd in schema 2":  docker,
		"unknown packing":   files("brotli"),
		"absent host file":  {Names: []string{"a:b"}, Layers: []Layer{{Files: []File{{Path: "/x", Host: "/no/such"}}}}},
		"unknown C program": {Names: []string{"a:b"}, Layers: []Layer{{Files: []File{{Path: "/x", C: "no/such.c"}}}}},
	}
	for name, image := range tests {
		store := &memory{blobs: map[digest.Digest][]byte{}, tags: map[string]digest.Digest{}}
		builder, err := Open(t.Context(), Options{Dir: t.TempDir(), Root: "../..", Store: store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := builder.Build(t.Context(), image); err == nil {
			t.Errorf("%s: image was built", name)
		}
		if err := builder.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFailingStore(t *testing.T) {
	dir := t.TempDir()
	full := errors.New("store is full")
	builder, err := Open(t.Context(), Options{Dir: dir, Root: "../..", Store: &memory{fail: full}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := builder.Build(t.Context(), files(Gzip)); !errors.Is(err, full) {
		t.Errorf("error is %v, want the store's", err)
	}
	if err := builder.Close(); err != nil {
		t.Error(err)
	}
	records, err := filepath.Glob(filepath.Join(dir, "layers", "*"))
	if err != nil || len(records) > 0 {
		t.Errorf("Build records a layer that was not stored: %v, %v", records, err)
	}
}

func TestOneBuilderAtATime(t *testing.T) {
	dir := t.TempDir()
	store := &memory{}
	first, err := Open(t.Context(), Options{Dir: dir, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if second, err := Open(ctx, Options{Dir: dir, Store: store}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second builder is %v, %v; want it to wait", second, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := Open(t.Context(), Options{Dir: dir, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
}

// A layer has a package's dependencies, less those in the layers below.
func TestPackages(t *testing.T) {
	if _, err := os.Stat("/usr/bin/apt-get"); err != nil {
		t.Skip("needs apt")
	}
	image := Image{Names: []string{"test/packages:latest"}, Layers: []Layer{
		{Packages: []string{"busybox-static"}, Only: true, Applets: true},
		{Packages: []string{"zlib1g"}},
		{Packages: []string{"zlib1g", "libmd0"}},
	}}
	built, store := build(t, t.TempDir(), image)
	var names [3]map[string]bool
	for n, layer := range built.Layers {
		names[n] = map[string]bool{}
		for in := tar.NewReader(bytes.NewReader(unpack(t, Gzip, store.blobs[layer.Digest]))); ; {
			header, err := in.Next()
			if err != nil {
				break
			}
			names[n][header.Name] = true
		}
	}
	if !names[0]["bin/busybox"] || !names[0]["bin/sh"] {
		t.Error("busybox or its applets are missing")
	}
	const libc = "lib/x86_64-linux-gnu/libc.so.6"
	if names[0][libc] || !names[1][libc] || names[2][libc] {
		t.Errorf("libc is in the layers %v, %v, %v; want it in the second only", names[0][libc], names[1][libc], names[2][libc])
	}
}
