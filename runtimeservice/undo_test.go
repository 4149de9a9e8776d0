package runtimeservice

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/nri"
	"github.com/micarun/mica/runtimeservice/oci"
	"github.com/micarun/mica/runtimeservice/state"
)

func of[T any](v T) *T { return &v }

// If the second step of an update fails, the first is undone: the container has the limits of its
// recorded state.
func TestFailedUpdateIsUndone(t *testing.T) {
	m := newMeasured(t)
	log := filepath.Join(t.TempDir(), "updates")
	runtime := filepath.Join(t.TempDir(), "runc")
	m.no(os.WriteFile(runtime, []byte("#!/bin/sh\ncat >>"+log+"; echo >>"+log+"\n"), 0o755))
	m.handlers = map[string]handler{"": {Runtime: oci.New(oci.Handler{Path: runtime}, oci.Options{})}}
	rec := state.ContainerRecord{ID: newID(), CgroupParent: "/mica-test-absent"} // so that the second step fails
	st := state.ContainerState{Ready: true, Started: rec.Created.AddDate(2000, 0, 0), Pid: os.Getpid()}
	st.Resources.Msg = &runtimeapi.LinuxContainerResources{CpuShares: 111}
	c := recordedContainer(t, t.TempDir(), rec, st)
	bundle := m.paths.Bundle(c.ID())
	m.no(os.MkdirAll(bundle, 0o700))
	m.no(jsonfile.Write(filepath.Join(bundle, specFile), &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: of[uint64](111)}}}}))
	err := m.limitContainer(context.Background(), c, nri.Update{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 222}})
	if err == nil || !strings.Contains(err.Error(), "limit cgroup") {
		t.Errorf("update with a step that fails: %v", err)
	}
	updates, err := os.ReadFile(log)
	m.no(err)
	lines := strings.Split(strings.TrimSpace(string(updates)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"shares":222`) || !strings.Contains(lines[1], `"shares":111`) {
		t.Errorf("the OCI runtime was run with %q", lines)
	}
	if got := c.State().Resources.Msg.GetCpuShares(); got != 111 {
		t.Errorf("the recorded state has %d shares", got)
	}
}
