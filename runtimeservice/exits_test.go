package runtimeservice

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/events"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/state"
)

func testContainer(t *testing.T) *Container {
	t.Helper()
	rec := state.ContainerRecord{ID: "c1", PodID: "p1", StopSignal: "SIGTERM", Created: time.Now()}
	rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 3}}
	return recordedContainer(t, t.TempDir(), rec, state.ContainerState{})
}

func TestExitOfAShortLivedContainerComesBeforeItsStart(t *testing.T) {
	s := &Service{inventory: newInventory(state.Paths{}, nil), events: events.NewBroadcaster()}
	rec := state.PodRecord{ID: "p1"}
	rec.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}}
	pod := recordedPod(t, t.TempDir(), rec, state.PodState{})
	c := testContainer(t)
	if err := errors.Join(s.pods.Add(pod), s.containers.Add(c)); err != nil {
		t.Fatal(err)
	}
	sub, err := s.events.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Update(func(st *state.ContainerState) error { st.Ready = true; return nil }); err != nil {
		t.Fatal(err)
	}
	c.beginStart()
	exit := keeper.Exit{Code: 0, At: time.Now()}
	if err := errors.Join(s.recordExit(c, exit), s.recordStart(c, pod, 1), s.recordExit(c, keeper.Exit{Code: 9, At: time.Now()})); err != nil {
		t.Fatal(err)
	}
	st := c.State()
	if st.Phase() != state.Exited || st.ExitCode != 0 || st.Reason != reasonCompleted || st.Started.IsZero() || st.Started.After(st.Finished) {
		t.Errorf("state = %+v, want completed with code 0, started before it finished", st)
	}
	s.events.Close()
	var kinds []runtimeapi.ContainerEventType
	err = sub.Forward(t.Context(), func(ev *runtimeapi.ContainerEventResponse) error {
		kinds = append(kinds, ev.GetContainerEventType())
		return nil
	})
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("end of the subscription = %v, want ErrUnavailable", err)
	}
	want := []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}
	if len(kinds) != 2 || kinds[0] != want[0] || kinds[1] != want[1] {
		t.Errorf("events = %v, want %v", kinds, want)
	}
	select {
	case <-c.Exited():
	default:
		t.Error("exited is not closed")
	}
}

// An exit event without a subscriber is recorded as Undelivered until a subscriber comes.
func TestExitWithoutSubscriber(t *testing.T) {
	for name, subscribed := range map[string]bool{"no subscriber": false, "a subscriber": true} {
		s := &Service{inventory: newInventory(state.Paths{}, nil), events: events.NewBroadcaster()}
		rec := state.PodRecord{ID: "p1"}
		rec.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}}
		pod := recordedPod(t, t.TempDir(), rec, state.PodState{})
		c := testContainer(t)
		if err := errors.Join(s.pods.Add(pod), s.containers.Add(c)); err != nil {
			t.Fatal(err)
		}
		if subscribed {
			if _, err := s.events.Subscribe(); err != nil {
				t.Fatal(err)
			}
		}
		c.beginStart()
		if err := errors.Join(s.recordExit(c, keeper.Exit{At: time.Now()}), c.recordUndelivered()); err != nil {
			t.Fatal(err)
		}
		var onDisk state.ContainerState
		if err := jsonfile.Read(filepath.Join(c.Dir(), state.StateFile), &onDisk); err != nil || onDisk.Undelivered == subscribed {
			t.Errorf("%s: the state on disk has Undelivered %t, %v", name, onDisk.Undelivered, err)
		}
		// Daemons of earlier versions wrote this key, and daemons of later ones must read it.
		text, err := os.ReadFile(filepath.Join(c.Dir(), state.StateFile))
		if err != nil || strings.Contains(string(text), `"Untold":true`) == subscribed {
			t.Errorf("%s: state on disk %s, %v", name, text, err)
		}
		if err := s.forgetUndelivered(); err != nil {
			t.Fatal(err)
		}
		if err := jsonfile.Read(filepath.Join(c.Dir(), state.StateFile), &onDisk); err != nil || c.State().Undelivered {
			t.Errorf("%s: still Undelivered, %v", name, err)
		}
	}
}

func TestExitReason(t *testing.T) {
	for _, tc := range []struct {
		exit keeper.Exit
		want string
	}{
		{keeper.Exit{}, reasonCompleted},
		{keeper.Exit{Code: 1}, reasonError},
		{keeper.Exit{Code: 137, OOMKilled: true}, reasonOOMKilled},
		{keeper.Exit{Code: 255, Reason: "lost"}, reasonUnknown},
	} {
		if got, _ := exitReason(tc.exit); got != tc.want {
			t.Errorf("exitReason(%+v) = %s, want %s", tc.exit, got, tc.want)
		}
	}
}
