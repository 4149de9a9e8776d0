package imageservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testregistry"
	"github.com/micarun/mica/overlay"
)

// backgroundOf is for checks after the test's context has ended.
func backgroundOf(testing.TB) context.Context { return context.Background() }

func incompressible(n int, seed uint64) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return string(b)
}

var fourLayers = imageSpec{
	layers: []layerSpec{
		{files: []file{{"bin/", ""}, {"bin/sh", "#!"}}},
		{files: []file{{"etc/", ""}, {"etc/zstd", "z"}}, compression: "zstd"},
		{files: nil}, // the empty tar
		{files: []file{{"etc/plain", "p"}}, compression: "none"},
	},
	config:  ocispec.ImageConfig{User: "1000:1000", StopSignal: "SIGQUIT", Env: []string{"A=b"}},
	created: time.Unix(1700000000, 0).UTC(),
}

// A pull writes the files that dockerd would have written.
func TestPullWritesDockersFiles(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(fourLayers), "ns/app", "v1")
	img := e.pull("ns/app:v1")
	want := Image{
		ID: b.id, Tags: []string{e.ref("ns/app:v1")}, Digests: []string{e.ref("ns/app@" + b.digest.String())},
		User: "1000:1000", Created: fourLayers.created, Layers: imagestore.ChainIDs(b.diffIDs), Size: 4,
	}
	if diff := cmp.Diff(want, img); diff != "" {
		t.Error(diff)
	}
	d, err := e.service.Detail(img.ID.String())
	if err != nil || d.Config.Config.StopSignal != "SIGQUIT" || d.Config.Config.Env[0] != "A=b" || d.ID != img.ID {
		t.Errorf("detail %+v, %v", d, err)
	}
	base := filepath.Join(e.root, "image", "overlay2")
	files := map[string]string{
		"imagedb/content/sha256/" + b.id.Encoded(): string(b.config),
		"repositories.json":                        fmt.Sprintf(`{"Repositories":{"%[1]s/ns/app":{"%[1]s/ns/app:v1":"%[2]s","%[1]s/ns/app@%[3]s":"%[2]s"}}}`, e.addr, b.id, b.digest),
	}
	for i := range b.blobs {
		files["distribution/diffid-by-digest/sha256/"+b.blobs[i].Encoded()] = b.diffIDs[i].String()
		files["distribution/v2metadata-by-diffid/sha256/"+b.diffIDs[i].Encoded()] = fmt.Sprintf(
			`[{"Digest":%q,"SourceRepository":"%s/ns/app","HMAC":""}]`, b.blobs[i], e.addr)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(base, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	var got []string
	for _, dir := range []string{"imagedb/content/sha256", "imagedb/metadata/sha256", "distribution/diffid-by-digest/sha256", "distribution/v2metadata-by-diffid/sha256"} {
		for _, entry := range must(os.ReadDir(filepath.Join(base, dir))) {
			got = append(got, dir+"/"+entry.Name())
		}
	}
	if len(got) != len(files)-1 {
		t.Errorf("files on disk: %v", got)
	}
}

func TestPullDockerSchema2ByDigestAndAgain(t *testing.T) {
	e := newEnv(t, nil)
	spec := simple("docker")
	spec.docker = true
	b := e.push(e.build(spec), "app", "v1")
	byDigest := "app@" + b.digest.String()
	if img := e.pull(byDigest); len(img.Tags) != 0 || len(img.Digests) != 1 {
		t.Errorf("tags %v, digests %v", img.Tags, img.Digests)
	}
	if img := e.pull("app:other@" + b.digest.String()); len(img.Tags) != 0 {
		t.Errorf("tags %v", img.Tags)
	}
	e.registry.ResetRequests()
	if img := e.pull("app:v1"); len(img.Tags) != 1 || len(img.Digests) != 1 {
		t.Errorf("tags %v, digests %v", img.Tags, img.Digests)
	}
	if n := e.requests("GET", b.blobs[0].String()); n != 0 {
		t.Errorf("layer was fetched %d times more", n)
	}
	e.registry.ResetRequests()
	e.pull("app:v1")
	if n := e.requests("HEAD", "/manifests/v1"); n != 1 || len(e.registry.Requests()) != 1 {
		t.Errorf("a pull of what is up to date made the requests %v", e.registry.Requests())
	}
}

func TestPullFromIndex(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.Platform = "linux/arm/v7" })
	index := func(mediaType string, entries ...ocispec.Descriptor) built {
		data := must(json.Marshal(ocispec.Index{MediaType: mediaType, Manifests: entries}))
		data = bytes.Replace(data, []byte(`"schemaVersion":0`), []byte(`"schemaVersion":2`), 1)
		return built{manifest: data, digest: digest.FromBytes(data), desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}}
	}
	var entries []ocispec.Descriptor
	ids := map[string]digest.Digest{}
	for _, platform := range []string{"linux/amd64", "linux/arm/v5", "linux/arm/v6", "windows/amd64"} {
		spec := simple(platform)
		spec.platform = platform
		b := e.push(e.build(spec), "app", "")
		os, arch, _ := strings.Cut(platform, "/")
		b.desc.Platform = &ocispec.Platform{OS: os}
		b.desc.Platform.Architecture, b.desc.Platform.Variant, _ = strings.Cut(arch, "/")
		entries, ids[platform] = append(entries, b.desc), b.id
	}
	top := e.push(index("application/vnd.docker.distribution.manifest.list.v2+json", entries...), "app", "v1")
	img := e.pull("app:v1")
	if img.ID != ids["linux/arm/v6"] || img.Digests[0] != e.ref("app@"+top.digest.String()) {
		t.Errorf("got %s %v", img.ID, img.Digests)
	}
	nested := e.push(index(ocispec.MediaTypeImageIndex, top.desc), "app", "nested")
	if img := e.pull("app:nested"); img.ID != ids["linux/arm/v6"] || !slices.Contains(img.Digests, e.ref("app@"+nested.digest.String())) {
		t.Errorf("nested: got %s %v", img.ID, img.Digests)
	}
	deep := nested
	for range 3 {
		deep = e.push(index(ocispec.MediaTypeImageIndex, deep.desc), "app", "deep")
	}
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:deep")}); !errdefs.IsNotImplemented(err) {
		t.Errorf("deep: %v", err)
	}
	e.push(index(ocispec.MediaTypeImageIndex, entries[0], entries[3]), "app", "others")
	_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:others")})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/amd64, windows/amd64") {
		t.Errorf("no fitting platform: %v", err)
	}
}

// badImage is a change of an image that its pull must detect.
type badImage struct {
	badContent
	want  string           // part of the error
	class func(error) bool // of the error; nil for any
}

type badContent struct {
	manifest func(*ocispec.Manifest)
	config   func(string) string
	blob     func([]byte) []byte // of the layer; the descriptor fits the result
	fault    testregistry.Fault
	media    string // Content-Type of the manifest
}

func badImages() map[string]badImage {
	return map[string]badImage{
		"layer: wrong digest":    {badContent{fault: testregistry.Fault{Kind: testregistry.Corrupt, Path: "/blobs/", Skip: 1, At: 20}}, "blob has digest", errdefs.IsDataLoss},
		"layer: bad first byte":  {badContent{fault: testregistry.Fault{Kind: testregistry.Corrupt, Path: "/blobs/", Skip: 1}}, "blob has digest", errdefs.IsDataLoss},
		"layer: short":           {badContent{fault: testregistry.Fault{Kind: testregistry.Short, Path: "/blobs/", Skip: 1, At: 30}}, "given up after 3 attempts", errdefs.IsUnavailable},
		"layer: size too small":  {badContent{manifest: func(m *ocispec.Manifest) { m.Layers[0].Size-- }}, "more than the", errdefs.IsDataLoss},
		"layer: size too large":  {badContent{manifest: func(m *ocispec.Manifest) { m.Layers[0].Size++ }}, "blob ends after", errdefs.IsDataLoss},
		"layer: always cut":      {badContent{fault: testregistry.Fault{Kind: testregistry.Truncate, Path: "/blobs/", Skip: 1, At: 10}}, "given up after 3 attempts", errdefs.IsUnavailable},
		"layer: missing":         {badContent{manifest: func(m *ocispec.Manifest) { m.Layers[0].Digest = someDigest }}, "404", errdefs.IsNotFound},
		"layer: bad gzip":        {badContent{blob: func(b []byte) []byte { b[len(b)-6] ^= 1; return b }}, "decompress gzip", nil},
		"layer: cut gzip":        {badContent{blob: func(b []byte) []byte { return b[:len(b)-12] }}, "decompress gzip", nil},
		"layer: gzip and more":   {badContent{blob: func(b []byte) []byte { return append(b, "garbage"...) }}, "decompress gzip", nil},
		"layer: no tar":          {badContent{blob: func([]byte) []byte { return []byte(strings.Repeat("no tar ", 200)) }}, "layer 1 of 1", nil},
		"layer: xz":              {badContent{blob: func([]byte) []byte { return []byte("\xfd7zXZ\x00 and so on") }}, "decompress: xz", nil},
		"layer: cut zstd":        {badContent{blob: func([]byte) []byte { b, _ := compress("zstd", tarOf([]file{{"a", "b"}})); return b[:len(b)-3] }}, "decompress zstd", nil},
		"layer: other content":   {badContent{blob: func([]byte) []byte { b, _ := compress("", tarOf([]file{{"evil", ""}})); return b }}, "diff ID", errdefs.IsDataLoss},
		"layer: escape":          {badContent{blob: func([]byte) []byte { b, _ := compress("", tarOf([]file{{"../../evil", "x"}})); return b }}, "layer 1 of 1", nil},
		"layer: unknown type":    {badContent{manifest: func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x" }}, `unknown media type "application/x"`, errdefs.IsNotImplemented},
		"no layer":               {badContent{manifest: func(m *ocispec.Manifest) { m.Layers = nil }}, "no layers", errdefs.IsInvalidArgument},
		"config: wrong digest":   {badContent{fault: testregistry.Fault{Kind: testregistry.Corrupt, Path: "/blobs/", At: 20}}, "fetch configuration sha256:", errdefs.IsDataLoss},
		"config: size":           {badContent{manifest: func(m *ocispec.Manifest) { m.Config.Size++ }}, "bytes, not", errdefs.IsDataLoss},
		"config: huge":           {badContent{manifest: func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }}, "larger than the limit", errdefs.IsOutOfRange},
		"config: not JSON":       {badContent{config: func(string) string { return "x" }}, "decode image configuration", errdefs.IsInvalidArgument},
		"config: no diff IDs":    {badContent{config: func(string) string { return `{"os":"linux"}` }}, "0 layers, manifest has 1", errdefs.IsInvalidArgument},
		"config: bad diff ID":    {badContent{config: func(string) string { return `{"rootfs":{"diff_ids":["../x"]}}` }}, "diff ID", errdefs.IsInvalidArgument},
		"config: platform":       {badContent{config: func(s string) string { return strings.Replace(s, "amd64", "s390x", 1) }}, "linux/s390x", errdefs.IsNotFound},
		"config: os":             {badContent{config: func(s string) string { return strings.Replace(s, "linux", "windows", 1) }}, "windows/amd64", errdefs.IsNotFound},
		"manifest: other kind":   {badContent{media: ocispec.MediaTypeImageIndex}, "says that it is", errdefs.IsInvalidArgument},
		"manifest: wrong type":   {badContent{media: "application/x-thing"}, "says that it is", errdefs.IsInvalidArgument},
		"manifest: not there":    {badContent{fault: testregistry.Fault{Kind: testregistry.Status, Path: "/manifests/", Code: 404}}, "resolve: registry", errdefs.IsNotFound},
		"manifest: unauthorized": {badContent{fault: testregistry.Fault{Kind: testregistry.Status, Path: "/manifests/", Code: 401}}, "401", errdefs.IsUnauthorized},
		"manifest: forbidden":    {badContent{fault: testregistry.Fault{Kind: testregistry.Status, Path: "/manifests/", Code: 403}}, "403", errdefs.IsPermissionDenied},
		"manifest: 500":          {badContent{fault: testregistry.Fault{Kind: testregistry.Status, Path: "/manifests/", Code: 500}}, "given up after 3 attempts", errdefs.IsUnavailable},
		"manifest: 429 for long": {badContent{fault: testregistry.Fault{Kind: testregistry.Status, Path: "/manifests/", Code: 429, RetryAfter: "3600"}}, "come back after 1h0m0s", errdefs.IsUnavailable},
		"manifest: reset":        {badContent{fault: testregistry.Fault{Kind: testregistry.Reset, Path: "/manifests/", At: 5}}, "transfer:", errdefs.IsUnavailable},
	}
}

// Bad content is refused with an error that names stage and object. Nothing stays, and the next good
// pull works.
func TestBadImages(t *testing.T) {
	for name, c := range badImages() {
		t.Run(name, c.pull)
	}
}

func (c badImage) pull(t *testing.T) {
	e := newEnv(t, nil)
	b := e.build(simple("x"))
	var m ocispec.Manifest
	if err := json.Unmarshal(b.manifest, &m); err != nil {
		t.Fatal(err)
	}
	if c.blob != nil {
		blob, _ := compress("", tarOf([]file{{"etc/", ""}, {"etc/content", incompressible(1000, 1)}}))
		blob = c.blob(blob)
		m.Layers[0].Digest, m.Layers[0].Size = must(e.registry.PutBlob(blob)), int64(len(blob))
		m.Layers[0].MediaType = ocispec.MediaTypeImageLayer
	}
	if c.config != nil {
		config := []byte(c.config(string(b.config)))
		m.Config.Digest, m.Config.Size = must(e.registry.PutBlob(config)), int64(len(config))
	}
	if c.manifest != nil {
		c.manifest(&m)
	}
	bad := e.assemble(b, b.desc.MediaType, m)
	if c.media != "" {
		bad.desc.MediaType = c.media
	}
	e.push(bad, "app", "bad")
	if c.fault.Kind != 0 {
		e.registry.AddFault(c.fault)
	}
	_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:bad")})
	if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), e.ref("app:bad")) {
		t.Errorf("error %v, want %q", err, c.want)
	}
	if c.class != nil && !c.class(err) {
		t.Errorf("error of another class: %v", err)
	}
	e.verify()
	if n := len(e.layers.Layers()); n != 0 {
		t.Errorf("%d layers stay", n)
	}
	if len(e.service.List()) != 0 {
		t.Errorf("images stay: %v", e.service.List())
	}
	e.registry.ClearFaults()
	e.push(e.build(simple("x")), "app", "bad")
	e.pull("app:bad")
}

func TestRegistryThatHangsIsGivenUp(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	e.push(e.build(simple("x")), "app", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Hang, Path: "/manifests/"})
	_, err := e.service.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: e.ref("app:v1")}})
	if !errors.Is(err, crierrors.ErrRegistryUnavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("error %v", err)
	}
}

func TestRegistryThatIsNotThere(t *testing.T) {
	e := newEnv(t, nil)
	_, err := e.service.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/app"}})
	if !errors.Is(err, crierrors.ErrRegistryUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v", err)
	}
}

func TestPullDeadline(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.PullTimeout = 100 * time.Millisecond })
	b := e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"big", incompressible(1<<20, 4)}}}}}), "app", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: b.blobs[0].String(), Rate: 1000})
	_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:v1")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// mountTmpfs mounts a file system in memory until the test ends.
func mountTmpfs(t testing.TB, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	e := newEnvAt(t, mountTmpfs(t, "size=4m"), testregistry.Auth{}, nil)
	big := imageSpec{layers: []layerSpec{{files: []file{{"small", "s"}}}, {files: []file{{"big", incompressible(6<<20, 5)}}}}}
	e.push(e.build(big), "app", "big")
	_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:big")})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "layer 2 of 2") {
		t.Errorf("error %v", err)
	}
	e.verify()
	if n := len(e.layers.Layers()); n != 0 {
		t.Errorf("%d layers stay", n)
	}
	e.push(e.build(simple("small")), "app", "small")
	e.pull("app:small")
}

// configure writes a hosts.toml for the registry that references name.
func (e *env) configure(t *testing.T, registry, text string) {
	t.Helper()
	dir := filepath.Join(e.opts.CertsDirs[0], registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Pulls of one reference are one pull, and pulls that share a layer fetch it once.
func TestPullsJoin(t *testing.T) {
	e := newEnv(t, nil)
	shared := layerSpec{files: []file{{"shared", incompressible(1<<20, 6)}}}
	a := e.push(e.build(imageSpec{layers: []layerSpec{shared, {files: []file{{"a", "a"}}}}}), "a", "v1")
	e.push(e.build(imageSpec{layers: []layerSpec{shared, {files: []file{{"b", "b"}}}}}), "b", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: a.blobs[0].String(), Rate: 4 << 20})
	var wg sync.WaitGroup
	for _, name := range []string{"a:v1", "a:v1", "b:v1", "a:v1", "b:v1"} {
		wg.Go(func() {
			if _, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref(name)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := e.requests("GET", a.blobs[0].String()); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
	for _, repo := range []string{"/v2/a/manifests/", "/v2/b/manifests/"} {
		if n := e.requests("GET", repo); n != 1 {
			t.Errorf("%s was fetched %d times", repo, n)
		}
	}
	if len(e.service.List()) != 2 || len(e.layers.Layers()) != 3 {
		t.Errorf("%d images, %d layers", len(e.service.List()), len(e.layers.Layers()))
	}
}

// A layer that another pull waits for survives the failure of the pull that fetches it.
func TestSharedLayerSurvivesTheOtherPull(t *testing.T) {
	e := newEnv(t, nil)
	shared := layerSpec{files: []file{{"shared", incompressible(1<<20, 7)}}}
	a := e.push(e.build(imageSpec{layers: []layerSpec{shared, {files: []file{{"a", "a"}}}}}), "a", "v1")
	e.push(e.build(imageSpec{layers: []layerSpec{shared, {files: []file{{"b", "b"}}}}}), "b", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: a.blobs[0].String(), Rate: 4 << 20})
	// The other layer of a fails, but only after b has joined the shared one.
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Hang, Path: a.blobs[1].String()})
	ctx, cancel := context.WithCancel(t.Context())
	aFailed := make(chan error, 1)
	job := e.job(t, "a:v1", a)
	go func() { aFailed <- job.layers(ctx) }()
	e.await(t, func() bool {
		return e.requests("GET", a.blobs[1].String()) == 1 && e.requests("GET", a.blobs[0].String()) == 1
	})
	bDone := make(chan error, 1)
	go func() {
		_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("b:v1")})
		bDone <- err
	}()
	e.await(t, func() bool { return e.holders(imagestore.ChainIDs(a.diffIDs)[0]) == 2 })
	cancel()
	if err := <-aFailed; !errors.Is(err, context.Canceled) {
		t.Errorf("a: %v", err)
	}
	if err := <-bDone; err != nil {
		t.Errorf("b: %v", err)
	}
	if n := e.requests("GET", a.blobs[0].String()); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}

// job returns the part of a pull that makes the layers present, so that a test can cancel it.
func (e *env) job(t *testing.T, name string, b built) *pullJob {
	t.Helper()
	ref := must(imagestore.ParseReference(e.ref(name)))
	repo := must(e.service.registries.Open(ref, registry.Auth{}))
	t.Cleanup(repo.Close)
	manifest := must(repo.Resolve(t.Context(), platforms.Only(platforms.MustParse("linux/amd64"))))
	return &pullJob{
		service: e.service, repository: repo, progress: &pullProgress{ref: reference.FamiliarString(ref)},
		manifest: manifest, diffIDs: b.diffIDs, chains: imagestore.ChainIDs(b.diffIDs),
		allowances: []*overlay.Allowance{e.layers.NewAllowance()},
	}
}

func (e *env) holders(chain digest.Digest) int {
	g := &e.service.fetches
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.byKey[chain.String()]; f != nil {
		return f.holders
	}
	return 0
}

// callers returns how many callers wait for running pulls.
func (e *env) callers() (n int) {
	g := &e.service.pulls
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.byKey {
		n += p.holders - 1 // a pull continues without callers
	}
	return n
}

func (e *env) await(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience.Of(time.Minute))
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("condition not met within a minute")
		}
		time.Sleep(time.Millisecond)
	}
}

// A pull that its caller has given up continues, and the retry joins it.
func TestPullOutlivesItsCaller(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"big", incompressible(2<<20, 8)}}}}}), "app", "v1")
	rest := make(chan struct{})
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Hold, Path: b.blobs[0].String(), At: 1 << 20, Until: rest})
	ctx, cancel := context.WithCancel(t.Context())
	progress := func(p LayerProgress) {
		if p.Done > 0 {
			cancel()
		}
	}
	if _, err := e.service.Pull(ctx, PullArgs{Ref: e.ref("app:v1"), Progress: progress}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	var last LayerProgress
	joined := make(chan error, 1)
	go func() {
		_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:v1"), Progress: func(p LayerProgress) { last = p }})
		joined <- err
	}()
	e.await(t, func() bool { return e.callers() == 1 })
	close(rest)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	if n := e.requests("GET", b.blobs[0].String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	if want := (LayerProgress{Digest: b.blobs[0], State: LayerComplete, Done: b.sizes[0], Total: b.sizes[0]}); last != want {
		t.Errorf("last progress %+v, want %+v", last, want)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(simple("x")), "app", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Hang, Path: b.blobs[0].String()})
	result := make(chan error, 1)
	go func() {
		_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:v1")})
		result <- err
	}()
	e.await(t, func() bool { return e.requests("GET", b.blobs[0].String()) == 1 })
	e.reopen()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	e.registry.ClearFaults()
	e.pull("app:v1")
}

// BenchmarkPull keeps the store in memory, so that it measures the pull and not the disk.
func BenchmarkPull(b *testing.B) {
	e := newEnvAt(b, mountTmpfs(b, "size=1g"), testregistry.Auth{}, nil)
	spec := imageSpec{}
	for l := range 6 {
		var files []file
		for i := range 400 {
			half := incompressible(8<<10, uint64(l*1000+i))
			files = append(files, file{fmt.Sprintf("layer%d-file%d", l, i), half + strings.Repeat("text ", 8<<10/5)})
		}
		spec.layers = append(spec.layers, layerSpec{files: files})
	}
	for _, format := range []string{"gzip", "zstd"} {
		b.Run(format, func(b *testing.B) {
			for i := range spec.layers {
				spec.layers[i].compression = format
			}
			built := e.push(e.build(spec), "bench", format)
			var bytes int64
			for _, l := range spec.layers {
				for _, f := range l.files {
					bytes += int64(len(f.content))
				}
			}
			b.SetBytes(bytes)
			for b.Loop() {
				e.pull("bench:" + format)
				b.StopTimer()
				if err := e.service.Remove(b.Context(), built.id.String()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// A layer that the store has on top of another one is copied, unless the image repeats it or its blob
// is not known to hold it.
func TestPullCopiesLayers(t *testing.T) {
	e := newEnv(t, nil)
	shared := layerSpec{files: []file{{"shared", incompressible(1<<20, 8)}}}
	base := func(name string) layerSpec { return layerSpec{files: []file{{name, name}}} }
	a := e.push(e.build(imageSpec{layers: []layerSpec{base("a"), shared}}), "a", "v1")
	e.push(e.build(imageSpec{layers: []layerSpec{base("b"), shared}}), "b", "v1")
	e.push(e.build(imageSpec{layers: []layerSpec{base("c"), shared, shared}}), "c", "v1")
	for _, step := range []struct {
		name    string
		fetches int // of the shared blob so far
	}{{"a:v1", 1}, {"b:v1", 1}, {"c:v1", 2}} {
		e.pull(step.name)
		if n := e.requests("GET", a.blobs[1].String()); n != step.fetches {
			t.Errorf("after %s the shared layer was fetched %d times, want %d", step.name, n, step.fetches)
		}
	}
	if n := len(e.layers.Layers()); n != 2+2+3 {
		t.Errorf("%d layers", n)
	}
	// Without the record of the blob, nothing says that it holds the layer.
	if err := os.RemoveAll(filepath.Join(e.root, "image", "overlay2", "distribution")); err != nil {
		t.Fatal(err)
	}
	e.push(e.build(imageSpec{layers: []layerSpec{base("d"), shared}}), "d", "v1")
	e.pull("d:v1")
	if n := e.requests("GET", a.blobs[1].String()); n != 3 {
		t.Errorf("the shared layer was fetched %d times, want 3", n)
	}
}

// A layer whose files have changed is fetched again, not copied.
func TestPullDoesNotCopyChangedLayers(t *testing.T) {
	e := newEnv(t, nil)
	shared := layerSpec{files: []file{{"shared", "content"}}}
	a := e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"a", "a"}}}, shared}}), "a", "v1")
	e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"b", "b"}}}, shared}}), "b", "v1")
	e.pull("a:v1")
	l := must(e.layers.Layer(imagestore.ChainIDs(a.diffIDs)[1]))
	name := filepath.Join(e.root, "overlay2", l.CacheID, "diff", "shared")
	if err := os.WriteFile(name, []byte("CONTENT"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.pull("b:v1")
	if n := e.requests("GET", a.blobs[1].String()); n != 2 {
		t.Errorf("the shared layer was fetched %d times, want 2", n)
	}
	if err := os.WriteFile(name, []byte("content"), 0o644); err != nil { // what the check at the end expects
		t.Fatal(err)
	}
}
