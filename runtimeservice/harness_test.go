package runtimeservice

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
	"github.com/micarun/mica/runtimeservice/state"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and cgroups")
	}
}

// measured is a service whose pods and containers are real where they are
// measured: cgroups with processes, network namespaces and writable layers.
// Nothing of them was made by an OCI runtime.
type measured struct {
	*Service
	t      testing.TB
	parent string // of the pods' cgroups
	serial atomic.Int32
}

func newMeasured(t testing.TB) *measured {
	t.Helper()
	needRoot(t)
	mode, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	parent := "/mica-test-" + newID()[:12]
	cgroups, err := cgroup.New(mode, cgroup.Options{DefaultParent: parent})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroups.RemoveParent(context.Background(), parent); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	layers, err := overlay.Open(t.Context(), overlay.Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = layers.Close() })
	host, err := lookup.DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{DataDir: dir, StateDir: t.TempDir()}.withDefaults()
	inventory := newInventory(opts.paths(), nil)
	inventory.layers, inventory.cgroups = layers, cgroups
	return &measured{t: t, parent: parent, Service: &Service{
		inventory: inventory, opts: opts, host: host,
	}}
}

// recordedPod returns a pod with a record and a state below root.
func recordedPod(t testing.TB, root string, rec state.PodRecord, st state.PodState) *Pod {
	t.Helper()
	p, err := state.RecordPod(root, rec)
	if err == nil {
		err = p.Update(func(now *state.PodState) error { *now = st; return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	return newPod(p)
}

// recordedContainer returns a container with a record and a state below root.
func recordedContainer(t testing.TB, root string, rec state.ContainerRecord, st state.ContainerState) *Container {
	t.Helper()
	c, err := state.RecordContainer(root, rec)
	if err == nil {
		err = c.Update(func(now *state.ContainerState) error { *now = st; return nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	return newContainer(c)
}

// no ends the test on an error.
func (m *measured) no(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// pod adds a ready pod with a cgroup and a network namespace of its own.
func (m *measured) pod(labels map[string]string) *Pod {
	m.t.Helper()
	return m.podWith(state.PodRecord{OwnCgroup: true}, labels)
}

// podWith adds a ready pod like pod, with a record that continues rec.
func (m *measured) podWith(rec state.PodRecord, labels map[string]string) *Pod {
	m.t.Helper()
	name := fmt.Sprintf("pod%d", m.serial.Add(1))
	rec.ID, rec.Created = newID(), time.Now()
	rec.Config.Msg = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test"}, Labels: labels}
	var err error
	rec.CgroupParent, err = m.cgroups.PodParent("", rec.ID)
	m.no(err)
	_, err = m.cgroups.EnsureParent(m.t.Context(), rec.CgroupParent)
	m.no(err)
	p := recordedPod(m.t, m.t.TempDir(), rec, state.PodState{Phase: state.PodReady})
	m.no(m.pods.Add(p))
	dir := m.paths.PodState(p.ID())
	m.no(podns.Pin(m.t.Context(), podns.Args{Dir: dir, Net: true}))
	m.t.Cleanup(func() {
		if err := podns.Unpin(dir); err != nil {
			m.t.Error(err)
		}
	})
	return p
}

// container adds a running container to the pod, with a process of its own and
// 64 KiB in its writable layer.
func (m *measured) container(p *Pod, labels map[string]string) *Container {
	m.t.Helper()
	name := fmt.Sprintf("container%d", m.serial.Add(1))
	rec := state.ContainerRecord{ID: newID(), PodID: p.ID(), Created: time.Now(), CgroupParent: p.CgroupParent()}
	rec.Config.Msg = &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "example.org/" + name}, Labels: labels,
	}
	_, err := m.layers.Create(m.t.Context(), overlay.CreateArgs{ID: rec.ID})
	m.no(err)
	root, err := m.layers.Mount(m.t.Context(), overlay.MountArgs{ID: rec.ID})
	m.no(err)
	m.t.Cleanup(func() {
		if err := m.layers.Remove(context.Background(), rec.ID); err != nil {
			m.t.Error(err)
		}
	})
	m.no(os.WriteFile(filepath.Join(root, "file"), make([]byte, 64<<10), 0o600))
	c := recordedContainer(m.t, m.t.TempDir(), rec, state.ContainerState{Ready: true, Started: time.Now(), Pid: m.process(m.cgroups.ContainerDir(rec.CgroupParent, rec.ID))})
	m.no(m.containers.Add(c))
	return c
}

// process starts a process in a new cgroup. It lasts as long as the test.
func (m *measured) process(path string) int {
	m.t.Helper()
	_, err := m.cgroups.EnsureParent(m.t.Context(), path)
	m.no(err)
	// It works only once it is in the cgroup, and says when it has.
	cmd := exec.Command("sh", "-c", "read line; x=$(echo work); echo done; exec sleep 1000")
	stdin, err := cmd.StdinPipe()
	m.no(err)
	stdout, err := cmd.StdoutPipe()
	m.no(err)
	m.no(cmd.Start())
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	procs, err := filepath.Glob("/sys/fs/cgroup/*" + path + "/cgroup.procs")
	m.no(err)
	if m.cgroups.Mode().V2 {
		procs = []string{"/sys/fs/cgroup" + path + "/cgroup.procs"}
	}
	for _, file := range procs {
		m.no(os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)), 0))
	}
	_, err = stdin.Write([]byte("go\n"))
	m.no(err)
	_, err = io.ReadFull(stdout, make([]byte, len("done\n")))
	m.no(err)
	return cmd.Process.Pid
}
