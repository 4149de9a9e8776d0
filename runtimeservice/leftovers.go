package runtimeservice

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/state"
)

// leftover is something on the node whose pod or container does not exist.
type leftover struct {
	kind leftoverKind
	// where is the path of a directory or cgroup, or the ID of a process or writable layer.
	where string
}

// leftoverKind is what a leftover is, for logs and for problems of Check.
type leftoverKind string

const (
	leftProcess   leftoverKind = "process"
	leftLayer     leftoverKind = "writable layer"
	leftStateDir  leftoverKind = "state directory"
	leftJob       leftoverKind = "checkpoint"
	leftDiscarded leftoverKind = "record directory"
	leftCgroup    leftoverKind = "cgroup"
)

// leftovers finds what has no record: processes of the keeper, writable layers, state directories
// with their mounts and namespaces, checkpoints, discarded records, cgroups.
func (v *inventory) leftovers(alive map[string]keeper.State) ([]leftover, error) {
	var found []leftover
	for id := range alive {
		if !v.claimed(id) {
			found = append(found, leftover{leftProcess, id})
		}
	}
	for _, rw := range v.layers.RWs() {
		// In a data root taken over from dockerd, its containers have layers too.
		_, err := v.containers.Get(rw.ID)
		_, aside := v.unusable.get(state.ContainerKind, rw.ID)
		if err != nil && !aside && !exists(filepath.Join(v.paths.DataDir, "containers", rw.ID)) {
			found = append(found, leftover{leftLayer, rw.ID})
		}
	}
	var errs []error
	for _, root := range []string{v.paths.PodStates(), v.paths.Bundles()} {
		dirs, err := directories(root)
		errs = append(errs, err)
		for _, dir := range dirs {
			if !v.claimed(filepath.Base(dir)) {
				found = append(found, leftover{leftStateDir, dir})
			}
		}
	}
	jobs, err := directories(v.paths.Checkpoints())
	errs = append(errs, err)
	for _, dir := range jobs {
		if _, ok := v.jobs.Load(filepath.Base(dir)); !ok {
			found = append(found, leftover{leftJob, dir})
		}
	}
	discarded, err := v.discarded()
	found = append(found, discarded...)
	errs = append(errs, err)
	cgroups, err := v.leftoverCgroups()
	return append(found, cgroups...), errors.Join(append(errs, err)...)
}

// discarded finds the record directories that setAside moved away, in this start or an earlier one.
func (v *inventory) discarded() ([]leftover, error) {
	dirs, err := directories(v.paths.Discarded())
	found := make([]leftover, len(dirs))
	for i, dir := range dirs {
		found[i] = leftover{leftDiscarded, dir}
	}
	return found, err
}

// directories returns the paths of what is in dir; none if dir does not exist, as before the first
// start or the first one after a boot.
func directories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	paths := make([]string, len(entries))
	for i, e := range entries {
		paths[i] = filepath.Join(dir, e.Name())
	}
	return paths, err
}

// leftoverCgroups finds cgroups with this daemon's mark whose pod does not exist.
func (v *inventory) leftoverCgroups() ([]leftover, error) {
	owner, err := v.owner()
	if err != nil {
		return nil, err
	}
	paths, err := v.cgroups.ListPods(owner)
	var found []leftover
	for id, path := range paths {
		if _, getErr := v.pods.Get(id); getErr != nil {
			found = append(found, leftover{leftCgroup, path})
		}
	}
	return found, err
}
