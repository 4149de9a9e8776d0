package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/patience"
	"github.com/micarun/mica/internal/testregistry"
)

func (f *fixture) imageStatus(ref string) *runtimeapi.Image {
	f.t.Helper()
	response, err := f.Images.ImageStatus(f.ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	f.no(err)
	return response.Image
}

func (f *fixture) listImages(filter *runtimeapi.ImageFilter) []*runtimeapi.Image {
	f.t.Helper()
	list, err := f.Images.ListImages(f.ctx, filter)
	f.no(err)
	return list
}

func TestPullByTagAndByDigest(t *testing.T) {
	f := start(t)
	id := f.pull(busyboxImage)
	image := f.imageStatus(busyboxImage)
	if image.GetId() != id {
		t.Errorf("image ID is %q, the pull returned %q", image.GetId(), id)
	}
	if len(image.RepoDigests) != 1 {
		t.Fatalf("digests are %q, want one", image.RepoDigests)
	}
	byDigest := image.RepoDigests[0]
	f.no(f.Images.RemoveImage(f.ctx, &runtimeapi.ImageSpec{Image: busyboxImage}))
	if image := f.imageStatus(busyboxImage); image != nil {
		t.Errorf("removed image still has the status %v", image)
	}
	if again := f.pull(byDigest); again != id {
		t.Errorf("pull by digest returned %q, want %q", again, id)
	}
	image = f.imageStatus(byDigest)
	if len(image.RepoTags) != 0 {
		t.Errorf("an image pulled by digest has the tags %q", image.RepoTags)
	}
	if image.Size == 0 {
		t.Error("image size is 0")
	}
}

func TestImageKinds(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	for _, kind := range []string{"zstd", "uncompressed", "index", "dockerindex"} {
		config := f.containerConfig("registry.test/mica/busybox:"+kind, "cat", "/etc/mica-image")
		if got := f.output(p, config); got != kind+"\n" {
			t.Errorf("%s image: marker file contains %q", kind, got)
		}
	}
	docker := f.containerConfig("registry.test/mica/busybox:docker", "echo", "ran")
	if got := f.output(p, docker); got != "ran\n" {
		t.Errorf("docker schema 2 image printed %q", got)
	}
}

func TestFortyLayers(t *testing.T) {
	f := start(t)
	config := f.containerConfig("registry.test/mica/layers40:latest", "sh", "-c", "cat /layers/top; ls /layers | wc -l")
	if got := f.output(f.runPod(f.podConfig()), config); got != "39\n40\n" {
		t.Errorf("top file and number of files are %q, want 39 and 40", got)
	}
}

func TestListAndRemoveImages(t *testing.T) {
	f := start(t)
	id := f.pull(busyboxImage)
	f.pull("registry.test/mica/busybox:1.35")
	f.pull(toolsImage)
	if list := f.listImages(nil); len(list) != 2 {
		t.Errorf("list has %d images, want 2", len(list))
	}
	filter := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: busyboxImage}}
	list := f.listImages(filter)
	if len(list) != 1 || list[0].Id != id || len(list[0].RepoTags) != 2 {
		t.Fatalf("filtered list is %v, want one image with two tags", list)
	}
	tools := f.imageStatus(toolsImage)
	if tools.GetUsername() != "app" {
		t.Errorf("user of the tools image is %q, want app", tools.GetUsername())
	}
	// One removal removes the image with all its tags; the second has nothing to do.
	for range 2 {
		f.no(f.Images.RemoveImage(f.ctx, &runtimeapi.ImageSpec{Image: busyboxImage}))
	}
	if list := f.listImages(nil); len(list) != 1 || list[0].Id != tools.Id {
		t.Errorf("after the removal the list is %v, want the tools image", list)
	}
}

// The first answer already contains both file systems. Their usage grows with new data.
func TestImageFsInfo(t *testing.T) {
	f := start(t)
	empty, err := f.Images.ImageFsInfo(f.ctx)
	f.no(err)
	if len(empty.ImageFilesystems) != 1 || len(empty.ContainerFilesystems) != 1 {
		t.Fatalf("filesystems are %v, want one of images and one of containers", empty)
	}
	f.await(f.start(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "touch", "/file")))
	f.no(f.StopDaemon()) // the next call measures again
	f.no(os.Remove(filepath.Join(f.Data, "cri", "container-usage.json")))
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	info, err := f.Images.ImageFsInfo(f.ctx)
	f.no(err)
	for kind, list := range map[string][]*runtimeapi.FilesystemUsage{"images": info.ImageFilesystems, "containers": info.ContainerFilesystems} {
		if len(list) != 1 || list[0].InodesUsed.GetValue() == 0 || list[0].FsId.GetMountpoint() == "" || list[0].Timestamp == 0 {
			t.Errorf("%s: %v, want inodes, a mount point and a time", kind, list)
		}
	}
	if used := info.ImageFilesystems[0].UsedBytes.GetValue(); used < 1_000_000 || used <= empty.ImageFilesystems[0].UsedBytes.GetValue() {
		t.Errorf("images use %d bytes", used)
	}
}

func TestPullsJoin(t *testing.T) {
	f := start(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, err := f.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: nginxImage}, nil, nil)
			if err != nil {
				t.Errorf("pull: %v", err)
			}
		})
	}
	group.Wait()
	blobs := map[string]int{}
	for _, request := range f.registry.Requests() {
		if request.Method == "GET" && strings.Contains(request.Path, "/blobs/") {
			blobs[request.Path]++
		}
	}
	for blob, count := range blobs {
		if count != 1 {
			t.Errorf("%s was fetched %d times, want once", blob, count)
		}
	}
	if len(blobs) == 0 {
		t.Error("no blob was fetched")
	}
}

// A client that cancels a pull and retries it joins the running pull.
func TestPullContinuesForRetry(t *testing.T) {
	f := start(t)
	f.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Rate: 600 << 10, Path: "/blobs/"})
	ctx, giveUp := context.WithCancel(f.ctx)
	first := make(chan error, 1)
	go func() {
		_, err := f.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: busyboxImage}, nil, nil)
		first <- err
	}()
	blobs := func() map[string]int {
		fetched := map[string]int{}
		for _, request := range f.registry.Requests() {
			if request.Method == "GET" && strings.Contains(request.Path, "/blobs/") {
				fetched[request.Path]++
			}
		}
		return fetched
	}
	f.eventually("the registry has received requests for configuration and layer", func() bool { return len(blobs()) == 2 })
	giveUp()
	if err := <-first; status.Code(err) != codes.Canceled {
		t.Errorf("cancelled pull: %v, want Canceled", err)
	}
	if id := f.pull(busyboxImage); f.imageStatus(busyboxImage).GetId() != id {
		t.Errorf("the retry returns %s, and the image is %v", id, f.imageStatus(busyboxImage))
	}
	for blob, count := range blobs() {
		if count != 1 {
			t.Errorf("%s was fetched %d times, want once", blob, count)
		}
	}
}

func TestPullWithPassword(t *testing.T) {
	f := startWith(t, testregistry.Auth{Username: "user", Password: "secret"})
	spec := &runtimeapi.ImageSpec{Image: f.addr + "/mica/busybox:latest"}
	if _, err := f.Images.PullImage(f.ctx, spec, nil, nil); err == nil {
		t.Error("pull without a password works")
	}
	if _, err := f.Images.PullImage(f.ctx, spec, &runtimeapi.AuthConfig{Username: "user", Password: "wrong"}, nil); err == nil {
		t.Error("pull with a wrong password works")
	}
	_, err := f.Images.PullImage(f.ctx, spec, &runtimeapi.AuthConfig{Username: "user", Password: "secret"}, nil)
	f.no(err)
}

func TestBadPulls(t *testing.T) {
	f := start(t)
	type fault = testregistry.Fault
	tests := map[string]struct {
		image string
		fault fault
		want  string // part of the error
	}{
		"no such tag":        {image: "registry.test/mica/busybox:absent", want: "busybox:absent"},
		"no such repository": {image: "registry.test/mica/absent:latest", want: "absent"},
		"bad reference":      {image: "registry.test/UPPER:latest", want: "UPPER"},
		"refused":            {image: busyboxImage, fault: fault{Kind: testregistry.Status, Code: 401, Path: "/manifests/"}, want: "busybox"},
		"server error":       {image: busyboxImage, fault: fault{Kind: testregistry.Status, Code: 500, Path: "/manifests/"}, want: "busybox"},
		"truncated layer":    {image: busyboxImage, fault: fault{Kind: testregistry.Short, At: 5000, Path: "/blobs/"}, want: "busybox"},
		"corrupt layer":      {image: busyboxImage, fault: fault{Kind: testregistry.Corrupt, At: 5000, Path: "/blobs/"}, want: "busybox"},
		"corrupt manifest":   {image: busyboxImage, fault: fault{Kind: testregistry.Corrupt, At: 20, Path: "/manifests/"}, want: "busybox"},
		"unknown media type": {image: busyboxImage, fault: fault{Kind: testregistry.WrongType, MediaType: "text/html", Path: "/manifests/"}, want: "busybox"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.fault.Kind != 0 {
				f.registry.AddFault(test.fault)
			}
			_, err := f.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: test.image}, nil, nil)
			f.registry.ClearFaults()
			if err == nil {
				f.no(f.RemoveImages(f.ctx)) // so that the next case does not find it
				t.Fatal("pull works")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %q, want one that names %q", err, test.want)
			}
			leaks, err := f.AwaitClean(f.ctx, f.baseline, patience.Of(cleanWait))
			if err != nil || len(leaks) > 0 {
				t.Errorf("left behind: %q, %v", leaks, err)
			}
			if _, err := f.Mica(f.ctx, "check"); err != nil {
				t.Error(err)
			}
		})
	}
	f.pull(busyboxImage)
}

func TestPullResumesAfterReset(t *testing.T) {
	f := start(t)
	f.registry.AddFault(testregistry.Fault{Kind: testregistry.Reset, At: 600 << 10, Path: "/blobs/", Times: 1, Skip: 1})
	f.pull(busyboxImage)
	resumed := false
	for _, request := range f.registry.Requests() {
		resumed = resumed || request.Range != ""
	}
	if !resumed {
		t.Error("the daemon did not request the rest of the layer")
	}
	if got := f.output(f.runPod(f.podConfig()), f.containerConfig(busyboxImage, "echo", "whole")); got != "whole\n" {
		t.Errorf("container of the image printed %q", got)
	}
}

// layers returns the chain IDs of the layers on the node's disk.
func (f *fixture) layers() []string {
	f.t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.Data, "image", "overlay2", "layerdb", "sha256"))
	f.no(err)
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func TestImageVolumeOutlivesItsImage(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	f.pull(busyboxImage)
	rootfs := f.layers()
	f.pull(toolsImage)
	volume := slices.DeleteFunc(f.layers(), func(id string) bool { return slices.Contains(rootfs, id) })
	if len(volume) == 0 {
		t.Fatal("the images have all layers in common")
	}
	missing := func() []string {
		have := f.layers()
		return slices.DeleteFunc(slices.Clone(volume), func(id string) bool { return slices.Contains(have, id) })
	}
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtimeapi.ImageSpec{Image: toolsImage}}}
	id := f.start(p, config)
	want := f.exec(id, "sh", "-c", "find /image -type d | sort; cat /image/bin/lines /image/bin/euid | sha256sum")
	f.no(f.Images.RemoveImage(f.ctx, &runtimeapi.ImageSpec{Image: toolsImage}))
	restarts := map[string]func(){
		"no restart": func() {},
		"kill":       func() { f.no(f.Kill()) },
		"stop":       func() { f.no(f.StopDaemon()) },
		"check": func() {
			f.no(f.StopDaemon())
			_, err := f.Mica(f.ctx, "check")
			f.no(err)
		},
	}
	for name, restart := range restarts {
		if restart(); f.Pid() == 0 {
			_, err := f.StartDaemon(f.ctx)
			f.no(err)
		}
		if gone := missing(); len(gone) > 0 {
			t.Errorf("%s: mounted layers %q were removed", name, gone)
		}
		if got := f.exec(id, "sh", "-c", "find /image -type d | sort; cat /image/bin/lines /image/bin/euid | sha256sum"); got != want {
			t.Errorf("%s: the volume has changed", name)
		}
	}
	// Removing another image must not remove them either.
	f.no(f.Images.RemoveImage(f.ctx, &runtimeapi.ImageSpec{Image: busyboxImage}))
	if gone := missing(); len(gone) > 0 {
		t.Errorf("mounted layers %q were removed", gone)
	}
	f.no(f.Runtime.RemoveContainer(f.ctx, id))
	if left := f.layers(); len(left) > 0 {
		t.Errorf("layers %q remain without a container", left)
	}
}
