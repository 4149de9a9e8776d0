package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
)

// PodFacts are what a pod's checkpoint says of where it was made.
type PodFacts struct {
	Engine, EngineVersion       string
	Name, Namespace, UID, ID    string
	Runtime, Criu, Arch, Kernel string
}

// PodAnnotations puts the facts under the names that the field has for them.
func PodAnnotations(f PodFacts) map[string]string {
	return map[string]string{
		metadata.CheckpointAnnotationEngine:        f.Engine,
		metadata.CheckpointAnnotationEngineVersion: f.EngineVersion,
		metadata.CheckpointAnnotationPod:           f.Name,
		metadata.CheckpointAnnotationNamespace:     f.Namespace,
		metadata.CheckpointAnnotationPodUID:        f.UID,
		metadata.CheckpointAnnotationPodID:         f.ID,
		metadata.CheckpointAnnotationRuntimeName:   f.Runtime,
		metadata.CheckpointAnnotationCriuVersion:   f.Criu,
		metadata.CheckpointAnnotationHostArch:      f.Arch,
		metadata.CheckpointAnnotationHostKernel:    f.Kernel,
	}
}

// ReadPod reads which containers the checkpoint of a pod in dir has, as names
// and the base names of their archives. What is not one is ErrInvalidArgument,
// a directory that is not there ErrNotFound.
func ReadPod(dir string) (map[string]string, error) {
	var o PodOptions
	err := readJSON(dir, PodOptionsFile, &o)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("read pod checkpoint %s: %w", dir, errdefs.ErrNotFound)
		}
		err = invalid("it has no %s, so it is none or was never finished", PodOptionsFile)
	case err == nil && o.Version != PodVersion:
		err = invalid("it is of version %d, and %d is known", o.Version, PodVersion)
	case err == nil && len(o.Containers) == 0:
		err = invalid("it has no containers")
	}
	archives := map[string]string{}
	for name, id := range o.Containers {
		if name == "" || id == "" || filepath.Base(id) != id || id == ".." || id == "." {
			err = errors.Join(err, invalid("container %q has the archive %q", name, id))
		}
		archives[name] = id + ".tar"
	}
	if err != nil {
		return nil, fmt.Errorf("read pod checkpoint %s: %w", dir, err)
	}
	return archives, nil
}
