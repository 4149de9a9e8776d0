package runtimeservice

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/internal/podlog"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/stats"
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

// Reasons of an exit, beside those that the keeper reports.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonRebooted   = "NodeRebooted"
	reasonUnknown    = "Unknown"
)

// Exit codes that no process returned.
const (
	exitStartError = 128 // the OCI runtime could not start the process
	exitUnknown    = 255 // the code was lost; never shown as success
)

// ContainerRecord is what is known of a container before its first side effect. It is written once
// and never changes.
type ContainerRecord struct {
	ID      string
	PodID   string
	Config  stored[runtimeapi.ContainerConfig, *runtimeapi.ContainerConfig]
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

// containerUser returns the user of a process, with the primary group among the groups. The process
// may come from a checkpoint.
func containerUser(u specs.User) ContainerUser {
	groups := u.AdditionalGids
	if !slices.Contains(groups, u.GID) {
		groups = slices.Insert(slices.Clone(groups), 0, u.GID)
	}
	return ContainerUser{UID: u.UID, GID: u.GID, Supplemental: groups}
}

// ContainerState is what changes while a container lives.
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
	Resources stored[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources]
	// Limits are the limits that differ from the specification on disk; nil before the first
	// update.
	Limits *updatedLimits `json:",omitempty"`
}

func (s ContainerState) phase() Phase {
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

// Container is one container of a pod.
type Container struct {
	ContainerRecord
	dir    string        // of the record and the state
	op     *opLock       // held while it is created, started, released or removed
	exited chan struct{} // closed once the state says Exited
	usage  stats.Sampler

	// mounted and layers become MountedImages and MountedLayers of the state once the container is
	// created; guarded by op.
	mounted map[int]string
	layers  []digest.Digest
	// waiter is the executable that the container's first process ran before its own; guarded by
	// op. Zero if this daemon has not started the container.
	waiter checkpoint.Executable
	// held are the functions that release the layers of mounted images; guarded by op.
	held []func()

	// publishing is held while a step in the container's life is recorded and its event published.
	// It keeps events in order: a container can exit before its start is published. Taken after op,
	// before mu.
	publishing sync.Mutex

	mu    sync.Mutex // guards what follows; taken after op; the state file is the only I/O under it
	state ContainerState
	// starting is when StartContainer called the keeper, zero before. A short-lived container can
	// exit before the keeper answers.
	starting time.Time
	// undelivered is set if the exit event reached no subscriber.
	undelivered bool
}

func newContainer(dir string, rec ContainerRecord) *Container {
	return &Container{ContainerRecord: rec, dir: dir, op: newOpLock(), exited: make(chan struct{})}
}

func (c *Container) id() string       { return c.ID }
func (c *Container) identity() string { return containerIdentity(c.PodID, c.Config.Msg.GetMetadata()) }

func (c *Container) config() *runtimeapi.ContainerConfig { return c.Config.Msg }

func (c *Container) log() podlog.File { return podlog.File{Dir: c.LogDir, Path: c.LogPath} }

// subject identifies the container in operations.
func (s *Service) subject(c *Container) operations.Subject {
	on := operations.Subject{Pod: c.PodID, Container: c.ID, Name: c.config().GetMetadata().GetName()}
	if p, err := s.pods.get(c.PodID); err == nil {
		on.Name = p.subject().Name + "/" + on.Name
	}
	return on
}

// containerIdentity returns the fields that a kubelet repeats when it retries CreateContainer.
func containerIdentity(podID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s_%s_%d", podID, m.GetName(), m.GetAttempt())
}

func (c *Container) snapshot() ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *Container) phase() Phase { return c.snapshot().phase() }

// update changes the state: f changes a copy, which is persisted and then replaces the state. If f
// or the write fails, the state does not change. When update returns, an exit is on stable storage,
// because the keeper forgets it afterwards.
func (c *Container) update(f func(*ContainerState) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.state
	if err := f(&next); err != nil {
		return err
	}
	write := jsonfile.Write
	ended := next.phase() == Exited && c.state.phase() != Exited
	if ended {
		write = jsonfile.WriteSync
	}
	if err := write(filepath.Join(c.dir, stateFile), next); err != nil {
		return fmt.Errorf("write state of container %s: %w", c.ID, err)
	}
	c.state = next
	if ended {
		close(c.exited)
	}
	return nil
}

// require returns ErrFailedPrecondition unless the container is in one of the phases.
func (c *Container) require(action string, phases ...Phase) error {
	got := c.phase()
	for _, p := range phases {
		if got == p {
			return nil
		}
	}
	return fmt.Errorf("cannot %s container %q (%s): %s: %w", action, c.config().GetMetadata().GetName(), c.ID, got, errdefs.ErrFailedPrecondition)
}

func (ph Phase) cri() runtimeapi.ContainerState {
	switch ph {
	case Created:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case Running:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case Exited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	default:
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	}
}

// image returns the image in the form of the CRI's answers.
func (c *Container) image() *runtimeapi.ImageSpec {
	spec := c.config().GetImage()
	name := spec.GetUserSpecifiedImage()
	if name == "" {
		name = spec.GetImage()
	}
	return &runtimeapi.ImageSpec{
		Image:              name,
		Annotations:        maps.Clone(spec.GetAnnotations()),
		UserSpecifiedImage: spec.GetUserSpecifiedImage(),
		RuntimeHandler:     spec.GetRuntimeHandler(),
	}
}

// status returns the container in the form of ContainerStatus.
func (c *Container) status() *runtimeapi.ContainerStatus {
	st := c.snapshot()
	cfg := c.config()
	status := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    cfg.GetMetadata(),
		State:       st.phase().cri(),
		CreatedAt:   c.Created.UnixNano(),
		StartedAt:   unixNano(st.Started),
		FinishedAt:  unixNano(st.Finished),
		ExitCode:    int32(st.ExitCode),
		Image:       c.image(),
		ImageRef:    c.ImageRef,
		ImageId:     c.ImageID,
		Reason:      st.Reason,
		Message:     st.Message,
		Labels:      maps.Clone(cfg.GetLabels()),
		Annotations: maps.Clone(cfg.GetAnnotations()),
		Mounts:      st.mounts(cfg.GetMounts()),
		LogPath:     c.LogPath,
		StopSignal:  criSignal(c.StopSignal),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(st.User.UID), Gid: int64(st.User.GID), SupplementalGroups: int64s(st.User.Supplemental),
		}},
	}
	if st.Resources.Msg != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: st.Resources.Msg}
	}
	return status
}

// mounts returns the config's mounts with the ID of every mounted image, since its name may refer
// to another image by now.
func (s ContainerState) mounts(config []*runtimeapi.Mount) []*runtimeapi.Mount {
	if len(s.MountedImages) == 0 {
		return config
	}
	out := slices.Clone(config)
	for i, id := range s.MountedImages {
		out[i] = proto.CloneOf(config[i])
		out[i].Image.ImageRef = id
	}
	return out
}

// listed returns the container in the form of ListContainers.
func (c *Container) listed() *runtimeapi.Container {
	cfg := c.config()
	return &runtimeapi.Container{
		Id:           c.ID,
		PodSandboxId: c.PodID,
		Metadata:     cfg.GetMetadata(),
		Image:        c.image(),
		ImageRef:     c.ImageRef,
		ImageId:      c.ImageID,
		State:        c.phase().cri(),
		CreatedAt:    c.Created.UnixNano(),
		Labels:       maps.Clone(cfg.GetLabels()),
		Annotations:  maps.Clone(cfg.GetAnnotations()),
	}
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func int64s(in []uint32) []int64 {
	out := make([]int64, len(in))
	for i, v := range in {
		out[i] = int64(v)
	}
	return out
}
