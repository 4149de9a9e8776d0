package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
)

func (f *fixture) thaw(dir string) {
	f.t.Helper()
	file, freeze := freezerFile(dir)
	text := "THAWED"
	if freeze == "1" {
		text = "0"
	}
	f.no(os.WriteFile(file, []byte(text), 0))
}

// A container that was frozen after its start but before the daemon recorded it runs after the
// daemon's restart. A container that was frozen before its start does not.
func TestFrozenContainersAfterRestart(t *testing.T) {
	f := start(t)
	f.no(f.Kill())
	f.Env = append(f.Env, failpoint.Variable+"=container-started=kill")
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	p := f.runPod(f.podConfig())
	waiting := f.create(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	started := f.create(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	cgroups := []string{f.cgroupOf(waiting, "freezer"), f.cgroupOf(started, "freezer")}
	pid := f.pidOf(started)
	if err := f.Runtime.StartContainer(f.ctx, started); err == nil {
		t.Fatal("the daemon did not die during the start")
	}
	f.no(f.Kill())
	// Version 1 of the freezer never gets to the end with a process that is just being executed: it
	// waits for its other threads, which are frozen.
	f.eventually("the program of the started container runs", func() bool {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return err == nil && string(name) == "sleep\n"
	})
	for _, dir := range cgroups {
		f.freeze(dir)
	}
	f.Env = nil
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	f.eventually("the started container runs", func() bool {
		return f.status(started).State == runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	if st := f.status(waiting); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("the container that was not started is %s", st.State)
	}
	if err := f.Runtime.StartContainer(f.ctx, waiting); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("start a frozen container: %v", err)
	}
	f.thaw(cgroups[0])
	f.no(f.Runtime.StartContainer(f.ctx, waiting))
}

// In a frozen pod, containers are neither created nor started: the OCI runtime would wait until its
// time-out.
func TestFrozenPodsRefuseContainers(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	created := f.create(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	cgroup := filepath.Dir(f.cgroupOf(created, "freezer"))
	f.freeze(cgroup)
	_, err := f.Runtime.CreateContainer(f.ctx, p.id, f.containerConfig(busyboxImage, "sleep", "1000"), p.config)
	for what, err := range map[string]error{"create": err, "start": f.Runtime.StartContainer(f.ctx, created)} {
		if err == nil || !strings.Contains(err.Error(), filepath.Base(cgroup)+" is frozen") {
			t.Errorf("%s a container in a frozen pod: %v", what, err)
		}
	}
	list, err := f.Runtime.ListContainers(f.ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.id})
	f.no(err)
	if len(list) != 1 || list[0].State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("containers of the frozen pod: %v", list)
	}
	f.thaw(cgroup)
	f.no(f.Runtime.StartContainer(f.ctx, created))
	f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
}
