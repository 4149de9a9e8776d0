package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/patience"
)

// freezerFile returns the file that freezes a cgroup, and the content to write to it.
func freezerFile(dir string) (file, freeze string) {
	file = filepath.Join(dir, "freezer.state")
	if _, err := os.Stat(file); err == nil {
		return file, "FROZEN"
	}
	return filepath.Join(dir, "cgroup.freeze"), "1"
}

func (f *fixture) freeze(dir string) {
	f.t.Helper()
	file, freeze := freezerFile(dir)
	f.no(os.WriteFile(file, []byte(freeze), 0))
}

// A container that an operator or an interrupted snapshot has frozen can be stopped.
func TestFrozenContainersStop(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	stopped := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	removed := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	left := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	shared := f.containerConfig(busyboxImage, "sh", "-c", "sleep 1000 & sleep 1000")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
	config := f.podConfig()
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE}}
	hostPID := f.runPod(config)
	outside := f.start(hostPID, shared)
	for _, id := range []string{stopped, removed, left, outside} {
		f.freeze(f.cgroupOf(id, "freezer"))
	}
	f.no(f.Runtime.StopContainer(f.ctx, stopped, 1))
	if st := f.status(stopped); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("after StopContainer the frozen container is %s with exit code %d", st.State, st.ExitCode)
	}
	f.no(f.Runtime.RemoveContainer(f.ctx, removed))
	f.no(f.Runtime.StopContainer(f.ctx, outside, 0))
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	if st := f.status(left); st.ExitCode != 137 {
		t.Errorf("after StopPodSandbox the frozen container is %s with exit code %d", st.State, st.ExitCode)
	}
}

// In a frozen pod cgroup, one container is stopped, and its neighbour remains frozen. Then the pod
// is removed with the init of its PID namespace.
func TestFrozenPodsStop(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}
	p := f.runPod(config)
	mine := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	shared := f.containerConfig(busyboxImage, "sleep", "1000")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	neighbour := f.start(p, shared)
	cgroup := filepath.Dir(f.cgroupOf(mine, "freezer"))
	f.freeze(cgroup)
	f.no(f.Runtime.StopContainer(f.ctx, mine, 0))
	if st := f.status(mine); st.ExitCode != 137 {
		t.Errorf("after StopContainer the container of a frozen pod is %s with exit code %d", st.State, st.ExitCode)
	}
	if st := f.status(neighbour); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the neighbour is %s", st.State)
	}
	if file, freeze := freezerFile(f.cgroupOf(neighbour, "freezer")); freeze == "FROZEN" {
		if text, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(text)) == "THAWED" {
			t.Errorf("the neighbour's cgroup is %q, %v", text, err)
		}
	}
	f.no(f.Runtime.StopPodSandbox(f.ctx, p.id))
	f.no(f.Runtime.RemovePodSandbox(f.ctx, p.id))
}

// execForSeconds runs a command with a time-out of some seconds and returns once the command runs.
// The channel gets the call's error. A busy machine may not start the command within the time-out;
// then it gets a longer one.
func (f *fixture) execForSeconds(id string) (ended <-chan error) {
	f.t.Helper()
	for limit := 2 * time.Second; ; limit *= 2 {
		result := make(chan error, 1)
		go func() {
			_, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"sh", "-c", "touch /tmp/runs; sleep 1000 & sleep 1001"}, limit)
			result <- err
		}()
		runs := false
		f.eventually("the command runs or has timed out", func() bool {
			runs = f.exec(id, "sh", "-c", "ls /tmp/runs 2>&1; true") == "/tmp/runs\n"
			return runs || len(result) > 0
		})
		if runs && len(result) == 0 {
			return result
		}
		f.exec(id, "rm", "-f", "/tmp/runs")
	}
}

// Calls on a frozen container return: new limits are set or rejected, and a command times out.
func TestCallsOnFrozenContainersEnd(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	cgroup := f.cgroupOf(id, "freezer")
	ended := f.execForSeconds(id)
	f.freeze(cgroup)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("ExecSync of a frozen command succeeded")
		}
	case <-time.After(patience.Of(time.Minute)):
		t.Fatal("ExecSync of a frozen command does not end at its time-out")
	}
	if _, _, err := f.Runtime.ExecSync(f.ctx, id, []string{"true"}, time.Second); err == nil {
		t.Error("a command runs in a frozen container")
	}
	ctx, cancel := context.WithTimeout(f.ctx, patience.Of(time.Minute))
	defer cancel()
	if err := f.Runtime.UpdateContainerResources(ctx, id, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	}); err != nil {
		t.Errorf("update the limits of a frozen container: %v", err)
	}
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
}
