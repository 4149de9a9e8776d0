package runtimeservice

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

// emit publishes an event about the container id, or about the pod itself if id is the pod's. It
// reports whether a subscriber got it.
func (s *Service) emit(id string, pod *Pod, kind runtimeapi.ContainerEventType) (delivered bool) {
	if !s.events.Wanted() {
		return false
	}
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: kind,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   pod.status(),
		ContainersStatuses: s.statusesOf(pod.ID()),
	}
	return s.events.Publish(ev)
}

// forgetUndelivered clears Undelivered: a new subscriber gets the exits of a gap from the
// broadcaster, and finds earlier ones in lists.
func (s *Service) forgetUndelivered() error {
	for _, c := range s.containers.All() {
		if !c.State().Undelivered {
			continue
		}
		if err := c.Update(func(st *state.ContainerState) error { st.Undelivered = false; return nil }); err != nil {
			return err
		}
	}
	return nil
}
