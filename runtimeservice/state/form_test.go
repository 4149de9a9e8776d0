package state

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The form on disk of every field: other versions of the daemon read and write it.
const (
	podRecordForm = `{"ID":"p1","Config":{"metadata":{"name":"web"}},"Handler":"runc","Created":"2026-01-02T03:04:05.000000006Z",` +
		`"CgroupParent":"/kubepods/p1","SELinux":"u:r:t:s0:c1,c2","OwnCgroup":true,"RestoredFrom":"/checkpoints/1"}`
	podStateForm = `{"Phase":"ready","BootID":"boot","IPs":["10.0.0.2","fd00::2"],"Restored":true,"InitPid":7,` +
		`"Overhead":{"cpuShares":"2"},"Resources":null}`
	containerRecordForm = `{"ID":"c1","PodID":"p1","Config":{"metadata":{"name":"web","attempt":3}},"Handler":"","Created":"2026-01-02T03:04:05.000000006Z",` +
		`"ImageID":"sha256:1","ImageRef":"r@sha256:2","LogPath":"/logs/0.log","LogDir":"/logs","CgroupParent":"/kubepods/p1",` +
		`"StopSignal":"SIGTERM","Restored":{"Source":"/c.tar","CheckpointedAt":"2026-01-02T03:04:05.000000006Z"}}`
	containerStateForm = `{"BootID":"boot","Ready":true,"Pid":42,"User":{"UID":1,"GID":2,"Supplemental":[2,3]},"MountedImages":{"1":"sha256:3"},` +
		`"MountedLayers":["sha256:4"],"SELinux":"u:r:t:s0:c1,c2","Started":"2026-01-02T03:04:05.000000006Z","Finished":"2026-01-02T03:04:05.000000006Z",` +
		`"ExitCode":9,"Reason":"Error","Message":"text","Untold":true,"Resources":{"cpuShares":"5"},` +
		`"Limits":{"Resources":{"pids":{"limit":6}},"OOMScoreAdj":-3}}`
)

func TestFormOnDisk(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	pod := PodRecord{
		ID: "p1", Handler: "runc", Created: at, CgroupParent: "/kubepods/p1", SELinux: "u:r:t:s0:c1,c2", OwnCgroup: true, RestoredFrom: "/checkpoints/1",
	}
	pod.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}}
	podState := PodState{Phase: PodReady, BootID: "boot", IPs: []string{"10.0.0.2", "fd00::2"}, Restored: true, InitPid: 7}
	podState.Overhead.Msg = &runtimeapi.LinuxContainerResources{CpuShares: 2}
	container := ContainerRecord{
		ID: "c1", PodID: "p1", Created: at, ImageID: "sha256:1", ImageRef: "r@sha256:2", LogPath: "/logs/0.log", LogDir: "/logs",
		CgroupParent: "/kubepods/p1", StopSignal: "SIGTERM", Restored: &Restoration{Source: "/c.tar", CheckpointedAt: at},
	}
	container.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 3}}
	pids, score := int64(6), -3
	containerState := ContainerState{
		BootID: "boot", Ready: true, Pid: 42, User: ContainerUser{UID: 1, GID: 2, Supplemental: []uint32{2, 3}},
		MountedImages: map[int]string{1: "sha256:3"}, MountedLayers: []digest.Digest{"sha256:4"}, SELinux: "u:r:t:s0:c1,c2",
		Started: at, Finished: at, ExitCode: 9, Reason: "Error", Message: "text", Undelivered: true,
		Limits: &Limits{Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}}, OOMScoreAdj: &score},
	}
	containerState.Resources.Msg = &runtimeapi.LinuxContainerResources{CpuShares: 5}
	for _, tc := range []struct {
		value, empty any
		want         string
	}{
		{pod, &PodRecord{}, podRecordForm},
		{podState, &PodState{}, podStateForm},
		{container, &ContainerRecord{}, containerRecordForm},
		{containerState, &ContainerState{}, containerStateForm},
	} {
		if got := compact(t, tc.value); got != tc.want {
			t.Errorf("%T on disk (-want +got):\n%s", tc.value, cmp.Diff(tc.want, got))
		}
		if err := json.Unmarshal([]byte(tc.want), tc.empty); err != nil {
			t.Errorf("read %T: %v", tc.value, err)
		}
		if got := compact(t, tc.empty); got != tc.want {
			t.Errorf("%T after a round trip (-want +got):\n%s", tc.value, cmp.Diff(tc.want, got))
		}
	}
}

// compact returns the JSON of v. protojson adds spaces at random.
func compact(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
