package runtimeservice

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/state"
)

// What the specification on disk has no update for stays, and what updates have set is as if it
// had always been so.
func TestCurrentSpec(t *testing.T) {
	dir := t.TempDir()
	score, later := 500, 900
	shares, memory, reserved, pids := uint64(512), int64(64<<20), int64(16<<20), int64(100)
	created := &specs.Spec{
		Process: &specs.Process{OOMScoreAdj: &score},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Shares: &shares, Cpus: "0"}, Memory: &specs.LinuxMemory{Limit: &memory, Reservation: &reserved},
			Pids: &specs.LinuxPids{Limit: &pids}, Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}, Unified: map[string]string{"a.b": "1"},
		}},
	}
	if err := jsonfile.Write(filepath.Join(dir, specFile), created); err != nil {
		t.Fatal(err)
	}
	st := state.ContainerState{}
	for range 2 { // before an update, and with one that sets nothing
		if got, err := currentSpec(st, dir); err != nil || cmp.Diff(created, got) != "" {
			t.Fatalf("%v, (-want +got):\n%s", err, cmp.Diff(created, got))
		}
		st.Limits = addLimits(st.Limits, state.Limits{Resources: &specs.LinuxResources{}})
	}
	quota, half, few := int64(5000), int64(32<<20), int64(9)
	st.Limits = addLimits(st.Limits, state.Limits{OOMScoreAdj: &later, Resources: &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Quota: &quota}, Pids: &specs.LinuxPids{Limit: &few}, Unified: map[string]string{"c.d": "2"},
	}})
	before := *st.Limits
	st.Limits = addLimits(st.Limits, state.Limits{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &half}}})
	if before.Resources.Memory != nil {
		t.Error("an update changed the state that it came after")
	}
	got, err := currentSpec(st, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: &shares, Quota: &quota, Cpus: "0"}, Memory: &specs.LinuxMemory{Limit: &half, Reservation: &reserved},
		Pids: &specs.LinuxPids{Limit: &few}, Devices: created.Linux.Resources.Devices, Unified: map[string]string{"a.b": "1", "c.d": "2"},
	}
	if diff := cmp.Diff(want, got.Linux.Resources); diff != "" || *got.Process.OOMScoreAdj != later {
		t.Errorf("score %d, limits (-want +got):\n%s", *got.Process.OOMScoreAdj, diff)
	}
}

// Only the seccomp filter is missing.
func TestCurrentSpecWithoutSeccomp(t *testing.T) {
	text, err := os.ReadFile("spec/testdata/confined.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, specFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	var st state.ContainerState
	pids := int64(7)
	st.Limits = &state.Limits{Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}}}
	want, err := currentSpec(st, dir)
	if err != nil {
		t.Fatal(err)
	}
	if want.Linux.Seccomp == nil {
		t.Fatal("the specification has no seccomp filter")
	}
	want.Linux.Seccomp = nil
	got, err := currentSpecWithoutSeccomp(st, dir)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
}
