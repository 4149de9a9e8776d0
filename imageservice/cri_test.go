package imageservice

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/overlay"
)

var _ runtimeapi.ImageServiceServer = (*Service)(nil)

// criEnv has the images app:v1, with a numeric user, and pinned:v1, with a name.
func criEnv(t *testing.T) (e *env, app built) {
	t.Helper()
	e = newEnv(t, func(o *Options) {
		o.Pinned = []string{"*/pinned:*"}
		o.RuntimeHandlers = []string{"", "runc"}
	})
	named := simple("named")
	named.config = ocispec.ImageConfig{User: "nobody:nogroup"}
	app = e.push(e.build(fourLayers), "app", "v1")
	e.push(e.build(named), "pinned", "v1")
	e.pull("app:v1")
	e.pull("pinned:v1")
	return e, app
}

func TestPullImage(t *testing.T) {
	e, app := criEnv(t)
	pull := func(handler string) (*runtimeapi.PullImageResponse, error) {
		return e.service.PullImage(t.Context(), &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: e.ref("app:v1"), RuntimeHandler: handler}, SandboxConfig: &runtimeapi.PodSandboxConfig{},
		})
	}
	if resp, err := pull("runc"); err != nil || resp.GetImageRef() != app.id.String() {
		t.Errorf("image_ref %s, %v", resp.GetImageRef(), err)
	}
	if _, err := pull("kata"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown handler: %v", err)
	}
}

// The status of an image is the same by each of its references.
func TestImageStatus(t *testing.T) {
	e, app := criEnv(t)
	spec := &runtimeapi.ImageSpec{Image: e.ref("app:v1"), UserSpecifiedImage: "app", Annotations: map[string]string{"a": "b"}}
	status, err := e.service.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.Image{
		Id: app.id.String(), RepoTags: []string{e.ref("app:v1")}, RepoDigests: []string{e.ref("app@" + app.digest.String())},
		Size: 4, Uid: &runtimeapi.Int64Value{Value: 1000},
		Spec: &runtimeapi.ImageSpec{Image: app.id.String(), UserSpecifiedImage: "app", Annotations: map[string]string{"a": "b"}},
	}
	if diff := cmp.Diff(want, status.GetImage(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	spec.Image = app.id.String()
	byID, err := e.service.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(status.GetImage(), byID.GetImage(), protocmp.Transform()); diff != "" {
		t.Errorf("status by ID and by tag differ: %s", diff)
	}
	var info verboseInfo
	if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info); err != nil || info.ChainID != imagestore.ChainIDs(app.diffIDs)[3] || info.ImageSpec.Config.User != "1000:1000" {
		t.Errorf("info %s, %v", status.GetInfo(), err)
	}
}

func TestListImages(t *testing.T) {
	e, app := criEnv(t)
	list, err := e.service.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Fatal(list, err)
	}
	for _, img := range list.GetImages() {
		isPinned := strings.Contains(img.GetRepoTags()[0], "pinned")
		if img.GetPinned() != isPinned || isPinned && (img.GetUsername() != "nobody" || img.GetUid() != nil) {
			t.Errorf("listed %v", img)
		}
	}
	for filter, n := range map[string]int{e.ref("app:v1"): 1, app.id.String(): 1, app.id.Encoded()[:12]: 1, e.ref("app@" + app.digest.String()): 1, e.ref("app"): 0, "": 2} {
		list, err := e.service.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: filter}}})
		if err != nil || len(list.GetImages()) != n {
			t.Errorf("filter %q: %v, %v", filter, list, err)
		}
	}
}

func TestRemoveImage(t *testing.T) {
	e, _ := criEnv(t)
	spec := &runtimeapi.ImageSpec{Image: e.ref("app:v1")}
	for range 2 {
		if _, err := e.service.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	}
	if status, err := e.service.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec}); err != nil || status.GetImage() != nil {
		t.Errorf("status of an absent image: %v, %v", status, err)
	}
}

// stream collects the messages of StreamImages.
type stream struct {
	grpc.ServerStream
	chunks [][]*runtimeapi.Image
}

func (s *stream) Send(r *runtimeapi.StreamImagesResponse) error {
	s.chunks = append(s.chunks, r.GetImages())
	return nil
}

// A stream has the images of the list.
func TestStreamImages(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(simple("x")), "app", "v1")
	e.pull("app:v1")
	for filter, want := range map[string]int{e.ref("app:v1"): 1, "absent": 0, "": 1} {
		var got stream
		req := &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: filter}}}
		if err := e.service.StreamImages(req, &got); err != nil || len(got.chunks) != want || want > 0 && got.chunks[0][0].GetId() != b.id.String() {
			t.Errorf("filter %q: %v, %v", filter, got.chunks, err)
		}
	}
}

func TestImageFsInfo(t *testing.T) {
	e := newEnv(t, nil)
	b := e.push(e.build(imageSpec{layers: []layerSpec{{files: []file{{"big", incompressible(1<<20, 9)}}}, {files: []file{{"small", "s"}}}}}), "app", "v1")
	e.pull("app:v1")
	if _, err := e.layers.Create(t.Context(), overlay.CreateArgs{ID: strings.Repeat("c", 64), Parent: imagestore.ChainIDs(b.diffIDs)[1]}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.layers.Remove(t.Context(), strings.Repeat("c", 64)); err != nil {
			t.Error(err)
		}
	}()
	info, err := e.service.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(info.GetContainerFilesystems()) != 1 || info.GetContainerFilesystems()[0].GetInodesUsed().GetValue() == 0 {
		t.Errorf("the first answer has no usage of the writable layer: %v, %v", info, err)
	}
	ready := func() bool {
		var err error
		if info, err = e.service.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{}); err != nil {
			t.Fatal(err)
		}
		return info.GetImageFilesystems()[0].GetInodesUsed().GetValue() == 4 && len(info.GetContainerFilesystems()) == 1
	}
	e.await(t, ready) // two files in two directories
	images, containers := info.GetImageFilesystems()[0], info.GetContainerFilesystems()[0]
	for _, fs := range []*runtimeapi.FilesystemUsage{images, containers} {
		if fs.GetFsId().GetMountpoint() != e.root || fs.GetTimestamp() <= 0 {
			t.Errorf("file system %v", fs)
		}
	}
	if used := images.GetUsedBytes().GetValue(); used < 1<<20 || used > 1<<20+64<<10 {
		t.Errorf("%d bytes used", used)
	}
	if containers.GetInodesUsed().GetValue() == 0 {
		t.Error("the writable layer has no inode")
	}
	cache := filepath.Join(e.root, "cri", "image-usage.json")
	e.await(t, func() bool { _, err := os.Stat(cache); return err == nil })
	e.reopen()
	info, err = e.service.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || info.GetImageFilesystems()[0].GetInodesUsed().GetValue() != 4 {
		t.Errorf("after a restart: %v, %v", info, err)
	}
	if got := info.GetContainerFilesystems(); len(got) != 1 || got[0].GetInodesUsed().GetValue() != containers.GetInodesUsed().GetValue() {
		t.Errorf("writable layers after a restart: %v, before it %v", got, containers)
	}
}
