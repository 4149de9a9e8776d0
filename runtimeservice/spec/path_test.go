package spec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Paths that are too long for system calls are refused, before an OCI runtime makes their
// directories one by one.
func TestPathsLongerThanTheKernelTakes(t *testing.T) {
	long := strings.Repeat("/d", maxPath/2+1)
	config := func(dir string) *runtimeapi.ContainerConfig { return &runtimeapi.ContainerConfig{WorkingDir: dir} }
	_, ofImage := workingDir(ContainerInput{Config: config(""), Image: ocispec.ImageConfig{WorkingDir: long}})
	_, ofConfig := workingDir(ContainerInput{Config: config(long)})
	_, volume := ImageVolumes(ocispec.ImageConfig{Volumes: map[string]struct{}{long: {}}})
	for name, err := range map[string]error{
		"working directory of the image": ofImage, "working directory": ofConfig, "volume": volume,
		"container path": validateMount(&runtimeapi.Mount{ContainerPath: long, HostPath: "/"}),
		"host path":      validateMount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: long}),
	} {
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more than 4096") || len(err.Error()) > 300 {
			t.Errorf("%s of %d bytes: %.400v", name, len(long), err)
		}
	}
	if _, err := workingDir(ContainerInput{Config: config(long[:maxPath])}); err != nil {
		t.Errorf("a working directory of %d bytes: %v", maxPath, err)
	}
}
