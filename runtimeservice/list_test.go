package runtimeservice

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/state"
)

func TestHasLabels(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	for _, tc := range []struct {
		want map[string]string
		ok   bool
	}{{nil, true}, {map[string]string{"a": "1"}, true}, {map[string]string{"b": ""}, true}, {map[string]string{"c": ""}, false}, {map[string]string{"a": "2"}, false}} {
		if got := hasLabels(labels, tc.want); got != tc.ok {
			t.Errorf("hasLabels(%v) = %v, want %v", tc.want, got, tc.ok)
		}
	}
}

func TestStatesOfTheCRI(t *testing.T) {
	for phase, want := range map[state.Phase]runtimeapi.ContainerState{
		state.Creating: runtimeapi.ContainerState_CONTAINER_UNKNOWN, state.Created: runtimeapi.ContainerState_CONTAINER_CREATED,
		state.Running: runtimeapi.ContainerState_CONTAINER_RUNNING, state.Exited: runtimeapi.ContainerState_CONTAINER_EXITED,
	} {
		if got := criContainerState(phase); got != want {
			t.Errorf("state of a %s container = %s, want %s", phase, got, want)
		}
	}
}
