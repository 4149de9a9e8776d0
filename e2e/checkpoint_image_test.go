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
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/testregistry"
)

// checkpointImage makes an image of an archive, following the buildah recipe in docs/operations.md.
// It returns the image's name in a separate registry.
func (f *fixture) checkpointImage(archive []byte) string {
	f.t.Helper()
	registry := testregistry.New(testregistry.Options{})
	server, err := registry.Start("127.0.0.1:0")
	f.no(err)
	f.t.Cleanup(func() { _ = server.Close() })
	hosts := filepath.Join(f.Data, "certs.d", server.Addr)
	f.no(os.MkdirAll(hosts, 0o755))
	f.no(os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", "http://"+server.Addr), 0o644))
	layer, err := registry.PutBlob(archive)
	f.no(err)
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer}},
	})
	f.no(err)
	id, err := registry.PutBlob(config)
	f.no(err)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config:      ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: int64(len(config))},
		Layers:      []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: layer, Size: int64(len(archive))}},
		Annotations: map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "counter"},
	})
	f.no(err)
	_, err = registry.PutManifest("checkpoints/counter", "v1", ocispec.MediaTypeImageManifest, manifest)
	f.no(err)
	return server.Addr + "/checkpoints/counter:v1"
}

// A container is restored from an image of its checkpoint. After its creation, the image is not
// needed any more.
func TestRestoreFromImage(t *testing.T) {
	f := startOn(t, func(o *node.Options) { o.RestoreImages = true })
	f.needCriu()
	config := f.containerConfig(busyboxImage, "sh", "-c", counting)
	p := f.runPod(f.podConfig())
	id := f.start(p, config)
	f.eventually("numbers", func() bool { return f.counted(p, config) > 3 })
	location := filepath.Join(t.TempDir(), "checkpoint.tar")
	f.checkpoint(id, location)
	f.no(f.RemovePod(f.ctx, p.id))
	archive, err := os.ReadFile(location)
	f.no(err)
	image := f.checkpointImage(archive)
	f.pull(image)

	next := f.runPod(f.podConfig())
	again := proto.CloneOf(config)
	again.Metadata = &runtimeapi.ContainerMetadata{Name: "restored"}
	again.Image = &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: image}
	again.Command, again.LogPath = nil, "restored.log"
	restored, err := f.Runtime.CreateContainer(f.ctx, next.id, again, next.config)
	f.no(err)
	f.no(f.Images.RemoveImage(f.ctx, again.Image))
	if got := f.status(restored); got.State != runtimeapi.ContainerState_CONTAINER_CREATED || got.Image.Image != busyboxImage {
		t.Errorf("before its start the container is %v of image %v", got.State, got.Image)
	}
	if f.counted(next, again) == 0 {
		t.Error("the log has no lines from before the checkpoint")
	}
	f.no(f.Runtime.StartContainer(f.ctx, restored))
	f.countsOn(next, again)
	f.no(f.Runtime.StopContainer(f.ctx, restored, 20))
	if got := f.status(restored); got.ExitCode != 7 {
		t.Errorf("the restored container exited with %d", got.ExitCode)
	}
}

// Without restore_images, the node rejects a checkpoint image and leaves nothing behind.
func TestRestoreFromImageRefused(t *testing.T) {
	f := start(t)
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for _, name := range []string{"config.dump", "spec.dump"} {
		f.no(out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: 2}))
		_, err := out.Write([]byte("{}"))
		f.no(err)
	}
	f.no(out.Close())
	image := f.checkpointImage(archive.Bytes())
	f.pull(image)
	p := f.runPod(f.podConfig())
	_, err := f.Runtime.CreateContainer(f.ctx, p.id, f.containerConfig(image), p.config)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "pods.restore_images") {
		t.Errorf("CreateContainer from a checkpoint image: %v", err)
	}
}
