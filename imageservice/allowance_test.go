package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/testregistry"
	"github.com/micarun/mica/overlay"
)

// The header of a file of 200 MiB in a tar, and a MiB of zeros, by `xz -6` and by `bzip2 -9`.
const (
	xzHeader    = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4AH/AC9dAD0ZSqu3TG/ywsRZ6zXSPSCbGxfqyoZnaO62ETKIejty+qVlmNntFbTXKEv5tCsAAAAM9rcLz4eF+gABS4AEAAAAtwlOmLHEZ/sCAAAAAARZWg=="
	xzZeros     = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj7///ANldAABv/f//o7f/Rz5IFXI5YVG4kijmo4YH+e7kHoLTL8U6PAFLsX7JiopNL6MN2X+m44wjEVPgWRjFdYrid/i2lH8MasDedElk4ulcU7IE2PdEDKtfDW1G6eXDdoi3llestk3haR1v+0uIEGxCy4g/XACP0E6vJiiUcR89jyThcJ6nI1/sKMuF0ZWYin4qkfIndfcZwAaYTZj92K/VkA/EJVP49ZE2MQWlsO5vwXBNRwzRkRGqrWAdus6xJxhcWYbpZlJYvul2rFnk5VsFCPnH2q38+1Iq9+SVJQAAAAAAwva6PqJwa2AAAfUBgIBAAHmXf0exxGf7AgAAAAAEWVo="
	bzip2Header = "QlpoOTFBWSZTWQd7jDYAACPbgMiAQABlgAAIYgCeEAQAIABUUaMQaaYmGSn6mKNqHpBbugYmBLQ5YCLWyJNKWAVMhWXw+ENe5vTw8f3Iu5IpwoSAO9xhsA=="
	bzip2Zeros  = "QlpoOTFBWSZTWThXHOUACAhAAMAEAAggADDMBSmmCAbEIB4u5IpwoSBwrjnK"
)

// pushTars puts an image of the given layer tars into the registry.
func (e *env) pushTars(name string, tars ...[]byte) built {
	e.t.Helper()
	b := built{}
	m := ocispec.Manifest{}
	for _, t := range tars {
		blob, mediaType := compress("zstd", t)
		d := ocispec.Descriptor{MediaType: mediaType, Digest: must(e.registry.PutBlob(blob)), Size: int64(len(blob))}
		m.Layers = append(m.Layers, d)
		b.blobs, b.sizes = append(b.blobs, d.Digest), append(b.sizes, d.Size)
		b.diffIDs = append(b.diffIDs, digest.FromBytes(t))
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: b.diffIDs}}
	b.config = must(json.Marshal(config))
	b.id = must(e.registry.PutBlob(b.config))
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: b.id, Size: int64(len(b.config))}
	return e.push(e.assemble(b, ocispec.MediaTypeImageManifest, m), name, "v1")
}

// linksTar is a layer whose entries lead through 40 symbolic links of 2,000 components each. It
// takes n times 8 ms by the weights of the store, and a kilobyte when compressed.
func linksTar(name string, n int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header) {
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
	}
	put(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755})
	put(tar.Header{Name: "l0", Typeflag: tar.TypeSymlink, Linkname: "d"})
	for i := range 39 {
		put(tar.Header{Name: fmt.Sprint("l", i+1), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("./", 2_000) + fmt.Sprint("l", i)})
	}
	for i := range n {
		put(tar.Header{Name: fmt.Sprintf("l%d/%s%d", 38+i%2, name, i), Typeflag: tar.TypeReg, Mode: 0o644})
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// patient gives a pull enough time on a loaded node with the race detector.
func patient(o *Options) { o.PullTimeout = time.Hour }

func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The floor of the budget counts once for an image, however many layers it has.
func TestImageOfManyHostileLayers(t *testing.T) {
	e := newEnv(t, patient)
	var tars [][]byte
	for i := range 60 {
		tars = append(tars, linksTar(fmt.Sprint(i, "-"), 60)) // half a second of work each
	}
	b := e.pushTars("hostile", tars...)
	before := processTime()
	_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("hostile:v1")})
	took := processTime() - before
	t.Logf("%v of processor time: %v", took, err)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more work than 4") || !strings.Contains(err.Error(), "of 60, sha256:") {
		t.Errorf("error %v, want an invalid argument with the limit and the layer", err)
	}
	begun := 0
	for _, d := range b.blobs {
		if e.requests("GET", d.String()) > 0 {
			begun++
		}
	}
	if begun > 20 {
		t.Errorf("%d of %d layers were fetched", begun, len(b.blobs))
	}
}

// A blob adds its bytes to the allowance once, however many layers of an image it is. Otherwise 480
// times the same layer could take as much as an image of 480 times its size.
func TestRepeatedBlobsCountOnce(t *testing.T) {
	const size = 1 << 20
	e := newEnv(t, patient)
	same := tarOf([]file{{"content", incompressible(size, 43)}})
	tars := slices.Repeat([][]byte{same}, 40)
	tars = append(tars, linksTar("a", 560)) // more than the floor and a MiB, less than the floor and 40 MiB
	e.pushTars("repeated", tars...)
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("repeated:v1")}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more work") {
		t.Errorf("an image of one layer 40 times: %v", err)
	}
	for i := range 40 {
		tars[i] = tarOf([]file{{"content", incompressible(size, uint64(100+i))}})
	}
	e.pushTars("distinct", tars...)
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("distinct:v1")}); err != nil {
		t.Errorf("an image of 40 distinct layers: %v", err)
	}
}

// Many layers of a few files need no more than the floor.
func TestImageOfManySmallLayers(t *testing.T) {
	e := newEnv(t, patient)
	var tars [][]byte
	for i := range 127 {
		files := []file{{"usr/", ""}, {"usr/lib/", ""}}
		for k := range 5 {
			files = append(files, file{fmt.Sprintf("usr/lib/%d-%d", i, k), strings.Repeat("content ", 1000)})
		}
		tars = append(tars, tarOf(files))
	}
	e.pushTars("small", tars...)
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("small:v1")}); err != nil {
		t.Error(err)
	}
}

// A layer that another pull fetches first counts against the allowance of that pull. If its other
// layers use it up, the pulls that share the layer fetch it themselves.
func TestPullOutlivesTheAllowanceOfAnother(t *testing.T) {
	e := newEnv(t, patient)
	shared := tarOf([]file{{"shared", incompressible(1<<20, 41)}})
	hostile := e.pushTars("hostile", shared, linksTar("a", 1_000))
	e.pushTars("honest", shared)
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: hostile.blobs[0].String(), Rate: 256 << 10})
	failed := make(chan error, 1)
	go func() {
		_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("hostile:v1")})
		failed <- err
	}()
	e.await(t, func() bool { return e.requests("GET", hostile.blobs[0].String()) >= 1 })
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("honest:v1")}); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errdefs.IsInvalidArgument(err) {
		t.Errorf("the hostile pull: %v", err)
	}
}

// The answer of a mirror that is not the layer does not count against the image.
func TestWrongBlobsOfAMirrorDoNotCount(t *testing.T) {
	e := newEnv(t, patient)
	b := e.pushTars("app", tarOf([]file{{"content", incompressible(1<<20, 42)}}))
	bomb, _ := compress("zstd", linksTar("a", 1_000))
	mirror := brokenMirror(t, e.registry, b.blobs[0].String(), func(right []byte) []byte {
		return append(bytes.Clone(bomb), right[len(bomb):]...)
	})
	e.configure(t, "quay.io", fmt.Sprintf("server = %q\n[host.%q]\n", "http://"+e.addr, mirror.URL))
	img, err := e.service.Pull(t.Context(), PullArgs{Ref: "quay.io/app:v1"})
	if err != nil || img.ID != b.id {
		t.Errorf("got %v, %v", img.ID, err)
	}
}

// A byte of xz or bzip2 takes ten times as long as a byte of gzip, and leaves less room for zeros.
func TestSlowFormatsCountForMore(t *testing.T) {
	e := newEnv(t, nil)
	for name, blob := range map[string][]byte{
		"xz":    append(fromBase64(xzHeader), bytes.Repeat(fromBase64(xzZeros), 200)...),
		"bzip2": append(fromBase64(bzip2Header), bytes.Repeat(fromBase64(bzip2Zeros), 200)...),
	} {
		d, err := e.service.apply(t.Context(), bytes.NewReader(blob), layerArgs{
			blob: ocispec.Descriptor{Size: int64(len(blob))}, allowances: []*overlay.Allowance{e.layers.NewAllowance()},
		})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more work") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
	}
}
