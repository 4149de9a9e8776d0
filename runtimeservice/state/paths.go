package state

import "path/filepath"

// The files of a pod or container in its directory.
const (
	RecordFile = "record.json"
	StateFile  = "state.json"
)

// Paths are the directories of pods and containers. All paths are absolute if the fields are.
type Paths struct {
	// DataDir is the data root, which survives a reboot.
	DataDir string
	// StateDir is the directory of files that a reboot makes useless.
	StateDir string
}

// Records is the directory of everything of pods and containers below the data root.
func (p Paths) Records() string { return filepath.Join(p.DataDir, "cri") }

// PodRecords is the directory of the pods' directories.
func (p Paths) PodRecords() string { return filepath.Join(p.Records(), "pods") }

// ContainerRecords is the directory of the containers' directories.
func (p Paths) ContainerRecords() string { return filepath.Join(p.Records(), "containers") }

// Checkpoints is the directory of checkpoints under way.
func (p Paths) Checkpoints() string { return filepath.Join(p.Records(), "checkpoints") }

// Discarded is the directory of records that were never complete.
func (p Paths) Discarded() string { return filepath.Join(p.Records(), "discarded") }

// Owner is the file with the ID of the data root.
func (p Paths) Owner() string { return filepath.Join(p.Records(), "owner.json") }

// PodStates is the directory of the pods' state directories.
func (p Paths) PodStates() string { return filepath.Join(p.StateDir, "pods") }

// PodState is the directory of the pod's pinned namespaces and of its files under /etc.
func (p Paths) PodState(id string) string { return filepath.Join(p.PodStates(), id) }

// Bundles is the directory of the containers' OCI bundles.
func (p Paths) Bundles() string { return filepath.Join(p.StateDir, "containers") }

// Bundle is the OCI bundle of a container.
func (p Paths) Bundle(id string) string { return filepath.Join(p.Bundles(), id) }
