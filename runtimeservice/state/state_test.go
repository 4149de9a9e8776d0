package state

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
)

func testContainer(t *testing.T) *Container {
	t.Helper()
	rec := ContainerRecord{ID: "c1", PodID: "p1", StopSignal: "SIGTERM", Created: time.Now()}
	rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 3}}
	c, err := RecordContainer(t.TempDir(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return c
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
	var st PodState
	if data, err = json.Marshal(st); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &st); err != nil || st.Overhead.Msg != nil {
		t.Errorf("nil message after a round trip = %v, %v", st.Overhead.Msg, err)
	}
}

func TestUpdatePersistsBeforeItShows(t *testing.T) {
	c := testContainer(t)
	if err := c.Update(func(st *ContainerState) error { st.Ready, st.Pid = true, 42; return nil }); err != nil {
		t.Fatal(err)
	}
	var onDisk ContainerState
	if err := jsonfile.Read(filepath.Join(c.Dir(), StateFile), &onDisk); err != nil || onDisk.Pid != 42 {
		t.Fatalf("state on disk = %+v, %v", onDisk, err)
	}
	refuse := errors.New("refused")
	if err := c.Update(func(st *ContainerState) error { st.Pid = 43; return refuse }); !errors.Is(err, refuse) {
		t.Errorf("update = %v, want the change's error", err)
	}
	if err := os.RemoveAll(c.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(func(st *ContainerState) error { st.Pid = 44; return nil }); err == nil {
		t.Error("update without a directory succeeded")
	}
	if got := c.State().Pid; got != 42 {
		t.Errorf("Pid after failed updates = %d, want 42", got)
	}
}

func TestPhaseFollowsFromState(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		st   ContainerState
		want Phase
	}{
		{ContainerState{}, Creating},
		{ContainerState{Ready: true}, Created},
		{ContainerState{Ready: true, Started: now}, Running},
		{ContainerState{Ready: true, Started: now, Finished: now}, Exited},
		{ContainerState{Ready: true, Finished: now}, Exited},
	} {
		if got := tc.st.Phase(); got != tc.want {
			t.Errorf("phase of %+v = %s, want %s", tc.st, got, tc.want)
		}
	}
}

func TestRequireNamesContainerAndPhase(t *testing.T) {
	c := testContainer(t)
	err := c.Require("exec in", Running)
	const want = `exec in container "web" (c1): it is creating: failed precondition`
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || err.Error() != want {
		t.Errorf("require = %q, want %q", err, want)
	}
}
