package state

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
)

// Phase is the stage of a container's life. It is derived from the state.
type Phase string

// The phases of a container, in order.
const (
	Creating Phase = "creating"
	Created  Phase = "created"
	Running  Phase = "running"
	Exited   Phase = "exited"
)

// ContainerRecord is what is known of a container before its first side effect. It is written once
// and never changes.
type ContainerRecord struct {
	ID      string
	PodID   string
	Config  Message[runtimeapi.ContainerConfig, *runtimeapi.ContainerConfig]
	Handler string
	Created time.Time
	// ImageID is the digest of the image's config. ImageRef is a repository digest of the image, or
	// ImageID if it has none.
	ImageID, ImageRef string
	// LogPath is the absolute path of the CRI log, "" for none.
	LogPath string
	// LogDir is the pod's log directory. Records of older builds lack it.
	LogDir string
	// CgroupParent is the pod's cgroup, the parent of the container's.
	CgroupParent string
	// StopSignal is the name of the signal that asks the container to end.
	StopSignal string
	// Restored is the checkpoint that the container's processes come from; nil for none.
	Restored *Restoration `json:",omitempty"`
}

// Restoration is the checkpoint that a container continues.
type Restoration struct {
	Source         string // archive or image
	CheckpointedAt time.Time
}

// ContainerUser is the identity of a container's first process.
type ContainerUser struct {
	UID, GID     uint32
	Supplemental []uint32
}

// UserOf returns the user of a process, with the primary group among the groups. The process may
// come from a checkpoint.
func UserOf(u specs.User) ContainerUser {
	groups := u.AdditionalGids
	if !slices.Contains(groups, u.GID) {
		groups = slices.Insert(slices.Clone(groups), 0, u.GID)
	}
	return ContainerUser{UID: u.UID, GID: u.GID, Supplemental: groups}
}

// Limits are the limits that updates have set, as in an OCI specification. The container's
// specification on disk has those of its creation.
type Limits struct {
	Resources   *specs.LinuxResources `json:",omitempty"`
	OOMScoreAdj *int                  `json:",omitempty"`
}

// ContainerState is what changes while a container lives. What its fields refer to is shared by all
// copies and must not be modified.
type ContainerState struct {
	BootID string // of the boot in which the container was created
	Ready  bool   // the OCI runtime has created it
	Pid    int
	User   ContainerUser // as resolved in the image
	// MountedImages are the IDs of mounted images, by the index of the mount in the config.
	// MountedLayers are the chain IDs of their layers, which stay if the image is removed.
	MountedImages map[int]string
	MountedLayers []digest.Digest `json:",omitempty"`
	SELinux       string          `json:",omitempty"` // process label
	Started       time.Time
	Finished      time.Time
	ExitCode      int
	Reason        string
	Message       string
	// Undelivered is set if the exit event reached no subscriber. It is sent again after a restart.
	// Its name on disk is older.
	Undelivered bool `json:"Untold,omitempty"`
	// Resources are the last resources that were set, at first those of the record.
	Resources Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
	// Limits are the limits that differ from the specification on disk; nil before the first
	// update.
	Limits *Limits `json:",omitempty"`
}

// Phase returns the phase of a container in this state.
func (s ContainerState) Phase() Phase {
	switch {
	case !s.Finished.IsZero():
		return Exited
	case !s.Started.IsZero():
		return Running
	case s.Ready:
		return Created
	}
	return Creating
}

// Container is the record and the state of a container. It is safe for concurrent use.
type Container struct {
	dir    string // of the record and the state
	record ContainerRecord
	exited chan struct{} // closed once the state says Exited

	mu    sync.Mutex // guards state; the state file is the only I/O under it
	state ContainerState
}

// RecordContainer writes the record of a new container to a new directory below root, named by the
// container's ID. The container is Creating. After an error there is no directory.
func RecordContainer(root string, rec ContainerRecord) (*Container, error) {
	dir, err := writeRecord(root, rec.ID, rec)
	if err != nil {
		return nil, fmt.Errorf("record container: %w", err)
	}
	return newContainer(dir, rec), nil
}

func newContainer(dir string, rec ContainerRecord) *Container {
	return &Container{dir: dir, record: rec, exited: make(chan struct{})}
}

// ID returns the container's full ID.
func (c *Container) ID() string { return c.record.ID }

// PodID returns the full ID of the container's pod.
func (c *Container) PodID() string { return c.record.PodID }

// Identity returns the fields that a kubelet repeats when it retries CreateContainer.
func (c *Container) Identity() string {
	return ContainerIdentity(c.record.PodID, c.Config().GetMetadata())
}

// Dir returns the directory of the record and the state.
func (c *Container) Dir() string { return c.dir }

// Record returns a copy of the record. What it refers to must not be modified.
func (c *Container) Record() ContainerRecord { return c.record }

// Config returns the config of the request, which must not be modified.
func (c *Container) Config() *runtimeapi.ContainerConfig { return c.record.Config.Msg }

// CgroupParent returns the pod's cgroup.
func (c *Container) CgroupParent() string { return c.record.CgroupParent }

// ContainerIdentity returns the identity of a container of the pod with the metadata.
func ContainerIdentity(podID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s_%s_%d", podID, m.GetName(), m.GetAttempt())
}

// State returns a copy of the state.
func (c *Container) State() ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Phase returns the phase.
func (c *Container) Phase() Phase { return c.State().Phase() }

// Exited returns a channel that is closed once the container's phase is Exited.
func (c *Container) Exited() <-chan struct{} { return c.exited }

// Update changes the state: f changes a copy, which is persisted and then replaces the state. If f
// or the write fails, the state does not change. When Update returns, an exit is on stable storage,
// because the keeper forgets it afterwards. f must not call methods of c.
func (c *Container) Update(f func(*ContainerState) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.state
	if err := f(&next); err != nil {
		return err
	}
	write := jsonfile.Write
	ended := next.Phase() == Exited && c.state.Phase() != Exited
	if ended {
		write = jsonfile.WriteSync
	}
	if err := write(filepath.Join(c.dir, StateFile), next); err != nil {
		return fmt.Errorf("write state of container %s: %w", c.ID(), err)
	}
	c.state = next
	if ended {
		close(c.exited)
	}
	return nil
}

// Require returns ErrFailedPrecondition unless the container is in one of the phases.
func (c *Container) Require(action string, phases ...Phase) error {
	got := c.Phase()
	if slices.Contains(phases, got) {
		return nil
	}
	return fmt.Errorf("%s container %q (%s): it is %s: %w", action, c.Config().GetMetadata().GetName(), c.ID(), got, errdefs.ErrFailedPrecondition)
}
