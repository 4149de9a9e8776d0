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

// PodFacts describe where a pod's checkpoint was made.
type PodFacts struct {
	Engine, EngineVersion       string
	Name, Namespace, UID, ID    string
	Runtime, Criu, Arch, Kernel string
}

// PodAnnotations returns the facts as checkpointctl's annotations.
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

// ReadPod reads the checkpoint of a pod in dir. It returns the base names of the archives by the
// containers' names. It returns ErrNotFound if dir does not exist and ErrInvalidArgument if it
// holds no valid checkpoint.
func ReadPod(dir string) (map[string]string, error) {
	var o PodOptions
	err := readJSON(dir, PodOptionsFile, &o)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("read pod checkpoint %s: %w", dir, errdefs.ErrNotFound)
		}
		err = invalid("%s is missing: not a pod checkpoint, or an unfinished one", PodOptionsFile)
	case err == nil && o.Version != PodVersion:
		err = invalid("version %d is not supported, only %d", o.Version, PodVersion)
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
