package runtimeservice

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/events"
	"github.com/micarun/mica/runtimeservice/keeper"
)

func testContainer(t *testing.T) *Container {
	t.Helper()
	rec := ContainerRecord{ID: "c1", PodID: "p1", StopSignal: defaultStop, Created: time.Now()}
	rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 3}}
	return newContainer(t.TempDir(), rec)
}

func TestRecordKeepsEveryByte(t *testing.T) {
	rec := ContainerRecord{ID: "c1"}
	rec.Config.Msg = &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Envs:     []*runtimeapi.KeyValue{{Key: "BIN", Value: []byte{0xff, 0x00, 'x'}}},
		Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 1 << 40}},
	}
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	var got ContainerRecord
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Config.Msg, rec.Config.Msg) {
		t.Errorf("config after a round trip = %v, want %v", got.Config.Msg, rec.Config.Msg)
	}
	var state PodState
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &state); err != nil || state.Overhead.Msg != nil {
		t.Errorf("nil message after a round trip = %v, %v", state.Overhead.Msg, err)
	}
}

func TestUpdatePersistsBeforeItShows(t *testing.T) {
	c := testContainer(t)
	if err := c.update(func(st *ContainerState) error { st.Ready, st.Pid = true, 42; return nil }); err != nil {
		t.Fatal(err)
	}
	var onDisk ContainerState
	if err := jsonfile.Read(filepath.Join(c.dir, stateFile), &onDisk); err != nil || onDisk.Pid != 42 {
		t.Fatalf("state on disk = %+v, %v", onDisk, err)
	}
	refuse := errors.New("refused")
	if err := c.update(func(st *ContainerState) error { st.Pid = 43; return refuse }); !errors.Is(err, refuse) {
		t.Errorf("update = %v, want the change's error", err)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	if err := c.update(func(st *ContainerState) error { st.Pid = 44; return nil }); err == nil {
		t.Error("update without a directory succeeded")
	}
	if got := c.snapshot().Pid; got != 42 {
		t.Errorf("Pid after failed updates = %d, want 42", got)
	}
}

func TestPhaseFollowsFromState(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		st   ContainerState
		want Phase
		cri  runtimeapi.ContainerState
	}{
		{ContainerState{}, Creating, runtimeapi.ContainerState_CONTAINER_UNKNOWN},
		{ContainerState{Ready: true}, Created, runtimeapi.ContainerState_CONTAINER_CREATED},
		{ContainerState{Ready: true, Started: now}, Running, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{ContainerState{Ready: true, Started: now, Finished: now}, Exited, runtimeapi.ContainerState_CONTAINER_EXITED},
		{ContainerState{Ready: true, Finished: now}, Exited, runtimeapi.ContainerState_CONTAINER_EXITED},
	} {
		if got := tc.st.phase(); got != tc.want || got.cri() != tc.cri {
			t.Errorf("phase of %+v = %s (%s), want %s (%s)", tc.st, got, got.cri(), tc.want, tc.cri)
		}
	}
}

func TestRequireNamesContainerAndPhase(t *testing.T) {
	c := testContainer(t)
	err := c.require("exec in", Running)
	const want = `cannot exec in container "web" (c1): creating: failed precondition`
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || err.Error() != want {
		t.Errorf("require = %q, want %q", err, want)
	}
}

func TestExitOfAShortLivedContainerComesBeforeItsStart(t *testing.T) {
	s := &Service{pods: newTable[*Pod]("pod"), containers: newTable[*Container]("container"), events: events.NewBroadcaster()}
	pod := newPod(t.TempDir(), PodRecord{ID: "p1"})
	pod.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}}
	c := testContainer(t)
	if err := errors.Join(s.pods.add(pod), s.containers.add(c)); err != nil {
		t.Fatal(err)
	}
	sub, err := s.events.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.update(func(st *ContainerState) error { st.Ready = true; return nil }); err != nil {
		t.Fatal(err)
	}
	c.beginStart()
	exit := keeper.Exit{Code: 0, At: time.Now()}
	if err := errors.Join(s.recordExit(c, exit), s.recordStart(c, pod, 1), s.recordExit(c, keeper.Exit{Code: 9, At: time.Now()})); err != nil {
		t.Fatal(err)
	}
	st := c.snapshot()
	if st.phase() != Exited || st.ExitCode != 0 || st.Reason != reasonCompleted || st.Started.IsZero() || st.Started.After(st.Finished) {
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
	case <-c.exited:
	default:
		t.Error("exited is not closed")
	}
}

// An exit event without a subscriber is recorded as Undelivered until a subscriber comes.
func TestExitWithoutSubscriber(t *testing.T) {
	for name, subscribed := range map[string]bool{"no subscriber": false, "a subscriber": true} {
		s := &Service{pods: newTable[*Pod]("pod"), containers: newTable[*Container]("container"), events: events.NewBroadcaster()}
		pod := newPod(t.TempDir(), PodRecord{ID: "p1"})
		pod.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}}
		c := testContainer(t)
		if err := errors.Join(s.pods.add(pod), s.containers.add(c)); err != nil {
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
		var onDisk ContainerState
		if err := jsonfile.Read(filepath.Join(c.dir, stateFile), &onDisk); err != nil || onDisk.Undelivered == subscribed {
			t.Errorf("%s: the state on disk has Undelivered %t, %v", name, onDisk.Undelivered, err)
		}
		// Daemons of earlier versions wrote this key, and daemons of later ones must read it.
		text, err := os.ReadFile(filepath.Join(c.dir, stateFile))
		if err != nil || strings.Contains(string(text), `"Untold":true`) == subscribed {
			t.Errorf("%s: state on disk %s, %v", name, text, err)
		}
		if err := s.forgetUndelivered(); err != nil {
			t.Fatal(err)
		}
		if err := jsonfile.Read(filepath.Join(c.dir, stateFile), &onDisk); err != nil || c.snapshot().Undelivered {
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

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		config runtimeapi.Signal
		image  string
		want   string
	}{
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "", "SIGTERM"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGQUIT", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "quit", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "3", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGRTMIN+3", "SIGRTMIN+3"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "nonsense", "SIGTERM"},
		{runtimeapi.Signal_SIGNAL_SIGUSR1, "SIGQUIT", "SIGUSR1"},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS2, "", "SIGRTMAX-2"},
	} {
		var img imageservice.Detailed
		img.Config.Config.StopSignal = tc.image
		got := stopSignal(&runtimeapi.ContainerConfig{StopSignal: tc.config}, img)
		if got != tc.want {
			t.Errorf("stopSignal(%s, %q) = %s, want %s", tc.config, tc.image, got, tc.want)
		}
	}
	for value, name := range runtimeapi.Signal_name {
		sig := runtimeapi.Signal(value)
		if sig == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		if got := criSignal(kernelName(sig)); got != sig {
			t.Errorf("criSignal(kernelName(%s)) = %s", name, got)
		}
		if n := signalNumber(kernelName(sig)); n == 15 && sig != runtimeapi.Signal_SIGNAL_SIGTERM {
			t.Errorf("signal %s has no number", name)
		}
	}
}

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
