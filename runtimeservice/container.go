package runtimeservice

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/internal/podlog"
	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/signals"
	"github.com/micarun/mica/runtimeservice/state"
	"github.com/micarun/mica/runtimeservice/stats"
)

// Container is one container of a pod.
type Container struct {
	*state.Container // what is stored

	// The fields below are not stored. A restart of the daemon loses them.

	op    *state.Lock // held while it is created, started, released or removed
	usage stats.Sampler
	execs atomic.Pointer[execTemplate] // nil before the first exec

	// waiter is the executable that the container's first process ran before its own; guarded by
	// op. Zero if this daemon has not started the container.
	waiter checkpoint.Executable
	// held are the functions that release the layers of mounted images; guarded by op.
	held []func()

	// publishing is held while a step in the container's life is recorded and its event published.
	// It keeps events in order: a container can exit before its start is published. It guards what
	// follows. Taken after op.
	publishing sync.Mutex
	// starting is when StartContainer called the keeper, zero before. A short-lived container can
	// exit before the keeper answers.
	starting time.Time
	// undelivered is set if the exit event reached no subscriber.
	undelivered bool
}

func newContainer(c *state.Container) *Container {
	return &Container{Container: c, op: state.NewLock()}
}

func (c *Container) log() podlog.File {
	rec := c.Record()
	return podlog.File{Dir: rec.LogDir, Path: rec.LogPath}
}

// subject identifies the container in operations.
func (s *Service) subject(c *Container) operations.Subject {
	on := operations.Subject{Pod: c.PodID(), Container: c.ID(), Name: c.Config().GetMetadata().GetName()}
	if p, err := s.pods.Get(c.PodID()); err == nil {
		on.Name = p.Subject().Name + "/" + on.Name
	}
	return on
}

func criContainerState(phase state.Phase) runtimeapi.ContainerState {
	switch phase {
	case state.Created:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case state.Running:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case state.Exited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	default:
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	}
}

// image returns the image in the form of the CRI's answers.
func (c *Container) image() *runtimeapi.ImageSpec {
	spec := c.Config().GetImage()
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
	rec, st, cfg := c.Record(), c.State(), c.Config()
	status := &runtimeapi.ContainerStatus{
		Id:          rec.ID,
		Metadata:    cfg.GetMetadata(),
		State:       criContainerState(st.Phase()),
		CreatedAt:   rec.Created.UnixNano(),
		StartedAt:   unixNano(st.Started),
		FinishedAt:  unixNano(st.Finished),
		ExitCode:    int32(st.ExitCode),
		Image:       c.image(),
		ImageRef:    rec.ImageRef,
		ImageId:     rec.ImageID,
		Reason:      st.Reason,
		Message:     st.Message,
		Labels:      maps.Clone(cfg.GetLabels()),
		Annotations: maps.Clone(cfg.GetAnnotations()),
		Mounts:      withImageIDs(cfg.GetMounts(), st.MountedImages),
		LogPath:     rec.LogPath,
		StopSignal:  signals.CRI(rec.StopSignal),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(st.User.UID), Gid: int64(st.User.GID), SupplementalGroups: int64s(st.User.Supplemental),
		}},
	}
	if st.Resources.Msg != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: st.Resources.Msg}
	}
	return status
}

// withImageIDs returns the config's mounts with the ID of every mounted image, since its name may
// refer to another image by now. images has the IDs by the index of the mount.
func withImageIDs(config []*runtimeapi.Mount, images map[int]string) []*runtimeapi.Mount {
	if len(images) == 0 {
		return config
	}
	out := slices.Clone(config)
	for i, id := range images {
		out[i] = proto.CloneOf(config[i])
		out[i].Image.ImageRef = id
	}
	return out
}

// listed returns the container in the form of ListContainers.
func (c *Container) listed() *runtimeapi.Container {
	rec, cfg := c.Record(), c.Config()
	return &runtimeapi.Container{
		Id:           rec.ID,
		PodSandboxId: rec.PodID,
		Metadata:     cfg.GetMetadata(),
		Image:        c.image(),
		ImageRef:     rec.ImageRef,
		ImageId:      rec.ImageID,
		State:        criContainerState(c.Phase()),
		CreatedAt:    rec.Created.UnixNano(),
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
