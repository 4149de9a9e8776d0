package nri

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/version"
)

func TestOffDoesNothing(t *testing.T) {
	p := New(Options{Socket: filepath.Join(t.TempDir(), "sock")})
	ctx := t.Context()
	asked := &runtimeapi.LinuxContainerResources{CpuShares: 7}
	changed, createErr := p.CreateContainer(ctx, container("c"))
	u, updateErr := p.UpdateContainer(ctx, "c", asked)
	if err := errors.Join(p.Start(ctx, State{}, Runtime{}), p.RunPod(ctx, pod("p")), p.UpdatePod(ctx, "p", nil, nil), createErr, p.StartContainer(ctx, "c"), updateErr); err != nil {
		t.Error(err)
	}
	p.PostCreateContainer(ctx, "c")
	p.PostStartContainer(ctx, "c", 1, time.Now())
	p.PostUpdateContainer(ctx, "c")
	p.PostUpdatePod(ctx, "p", nil, nil)
	p.Limited("c", nil)
	p.StopContainer(ctx, "c", Exit{})
	p.RemoveContainer(ctx, "c")
	p.StopPod(ctx, "p")
	p.RemovePod(ctx, "p")
	p.Close()
	if info := p.Info(); info.Enabled || info.Plugins != nil {
		t.Errorf("info %+v", info)
	}
	if p != nil || changed != nil || u.Resources != asked {
		t.Errorf("plugins %v, resources changed to %v and %v", p, changed, u.Resources)
	}
}

func TestInfoNamesWhoTakesPart(t *testing.T) {
	h := open(t, Options{}, State{})
	if info := h.Info(); !info.Enabled || info.Socket != h.opts.Socket || len(info.Plugins) != 0 {
		t.Errorf("before the first plugin: %+v", info)
	}
	first, second := &recorder{}, &recorder{}
	h.join(first, "20")
	h.join(second, "10")
	if diff := cmp.Diff([]string{"10-test", "20-test"}, h.Info().Plugins); diff != "" {
		t.Errorf("two have joined (-want +got):\n%s", diff)
	}
	second.stub.Stop()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		got := h.Info().Plugins
		if cmp.Equal([]string{"20-test"}, got) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("one has gone: %v", got)
		}
	}
	h.join(&recorder{}, "20")
	if diff := cmp.Diff([]string{"20-test", "20-test"}, h.Info().Plugins); diff != "" {
		t.Errorf("two of one name (-want +got):\n%s", diff)
	}
}

func TestEventsComeOnceAndInOrder(t *testing.T) {
	h := open(t, Options{}, State{})
	r := &recorder{}
	h.join(r, "10")
	ctx := t.Context()
	h.no(h.RunPod(ctx, pod("p")))
	shares := &runtimeapi.LinuxContainerResources{CpuShares: 512}
	h.no(h.UpdatePod(ctx, "p", nil, shares))
	h.PostUpdatePod(ctx, "p", nil, shares)
	for _, id := range []string{"a", "b"} {
		_, err := h.CreateContainer(ctx, container(id))
		h.no(err)
	}
	h.PostCreateContainer(ctx, "a")
	h.no(h.StartContainer(ctx, "a"))
	h.PostStartContainer(ctx, "a", 42, time.Now())
	_, err := h.UpdateContainer(ctx, "a", shares)
	h.no(err)
	h.PostUpdateContainer(ctx, "a")
	for range 2 {
		h.StopContainer(ctx, "a", Exit{Code: 3})
	}
	h.PostStartContainer(ctx, "a", 42, time.Now()) // too late
	for range 2 {
		h.StopPod(ctx, "p")
	}
	for _, id := range []string{"a", "a", "b", "unknown"} {
		h.RemoveContainer(ctx, id)
	}
	for range 2 {
		h.RemovePod(ctx, "p")
	}
	want := []string{
		"run p", "update p 512", "updated p 512", "create a", "create b", "created a", "start a", "started a pid 42",
		"update a", "updated a 0", "stop a code 3", "stop b code 0", "stop p", "remove a", "remove b", "remove p",
	}
	if diff := cmp.Diff(want, r.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// A plugin that joins gets existing objects by Synchronize and later changes by events. It misses
// nothing and gets nothing twice.
func TestLatePluginsSeeEveryContainerOnce(t *testing.T) {
	const workers, each = 8, 12
	h := open(t, Options{}, State{Pods: []Pod{pod("p")}})
	ctx := t.Context()
	var working sync.WaitGroup
	for w := range workers {
		working.Go(func() {
			for i := range each {
				id := fmt.Sprintf("c%d-%d", w, i)
				if _, err := h.CreateContainer(ctx, container(id)); err != nil {
					t.Error(err)
				}
				if rand.IntN(2) == 0 {
					if err := h.StartContainer(ctx, id); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	var late []*recorder
	for i := range 5 {
		r := &recorder{sync: func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate {
			time.Sleep(5 * time.Millisecond) // so that events pile up
			return nil
		}}
		h.join(r, fmt.Sprintf("%02d", i))
		late = append(late, r)
	}
	working.Wait()
	for i, r := range late {
		seen, running := map[string]int{}, map[string]bool{}
		for _, event := range r.events() {
			fields := strings.Fields(event)
			switch {
			case fields[0] == "create", fields[0] == "sync" && len(fields) == 3:
				seen[fields[1]]++
				running[fields[1]] = len(fields) == 3 && fields[2] == "CONTAINER_RUNNING"
			case fields[0] == "start":
				if seen[fields[1]] != 1 || running[fields[1]] {
					t.Errorf("plugin %d: start of %s, which was seen %d times before, running %v", i, fields[1], seen[fields[1]], running[fields[1]])
				}
			}
		}
		for w := range workers {
			for c := range each {
				if id := fmt.Sprintf("c%d-%d", w, c); seen[id] != 1 {
					t.Errorf("plugin %d got %s %d times", i, id, seen[id])
				}
			}
		}
	}
}

func TestWhatLivedBeforeIsSynchronized(t *testing.T) {
	running := container("a")
	running.Started, running.Pid = time.Unix(5, 0), 77
	h := open(t, Options{}, State{Pods: []Pod{pod("p"), pod("q")}, Containers: []Container{running, container("b"), container("c")}})
	h.StopContainer(t.Context(), "c", Exit{})
	h.StopPod(t.Context(), "q")
	r := &recorder{sync: func(_ []*api.PodSandbox, containers []*api.Container) []*api.ContainerUpdate {
		if got := containers[0]; got.GetPid() != 77 || got.GetStartedAt() != time.Unix(5, 0).UnixNano() {
			t.Errorf("running container: %v", got)
		}
		u := &api.ContainerUpdate{}
		u.SetContainerId("b")
		u.SetLinuxCPUSetCPUs("0")
		return []*api.ContainerUpdate{u}
	}}
	h.join(r, "10")
	if diff := cmp.Diff([]string{"sync p", "sync a CONTAINER_RUNNING", "sync b CONTAINER_CREATED"}, r.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	h.background.Wait()
	if got := h.limited(); len(got) != 1 || got[0].ID != "b" || got[0].Resources.GetCpusetCpus() != "0" {
		t.Errorf("the answer's updates: %+v", got)
	}
}

// A plugin that accepted a pod or container gets its removal if another plugin refuses it.
func TestRefusedIsTakenBack(t *testing.T) {
	h := open(t, Options{}, State{})
	refusing := true
	first, second := &recorder{}, &recorder{refuse: func(event string) error {
		if refusing && (event == "run" || event == "create" || event == "start") {
			return errors.New("not today")
		}
		return nil
	}}
	h.join(first, "10")
	h.join(second, "20")
	ctx := t.Context()
	says := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("got %v, want the plugin's words", err)
		}
	}
	says(h.RunPod(ctx, pod("p")))
	h.StopPod(ctx, "p")
	h.RemovePod(ctx, "p")
	refusing = false
	h.no(h.RunPod(ctx, pod("p")))
	refusing = true
	_, err := h.CreateContainer(ctx, container("a"))
	says(err)
	h.RemoveContainer(ctx, "a")
	refusing = false
	_, err = h.CreateContainer(ctx, container("b"))
	h.no(err)
	refusing = true
	says(h.StartContainer(ctx, "b"))
	want := []string{"run p", "stop p", "remove p", "run p", "create a", "stop a code 0", "remove a", "create b", "start b"}
	if diff := cmp.Diff(want, first.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestHangingPluginIsLeftBehind(t *testing.T) {
	// Enough time for the other plugin, even on a busy machine.
	h := open(t, Options{RequestTimeout: 3 * time.Second}, State{Pods: []Pod{pod("p")}})
	release := make(chan struct{})
	hanging := &recorder{refuse: func(event string) error {
		if event == "create" {
			<-release
		}
		return nil
	}}
	h.join(hanging, "10")
	other := &recorder{}
	h.join(other, "20")
	_, err := h.CreateContainer(t.Context(), container("a"))
	h.no(err)
	close(release)
	h.no(h.StartContainer(t.Context(), "a"))
	if diff := cmp.Diff([]string{"sync p", "create a", "start a"}, other.events()); diff != "" {
		t.Errorf("the other plugin's events (-want +got):\n%s", diff)
	}
	if got := hanging.events(); got[len(got)-1] != "create a" {
		t.Errorf("the hanging plugin got %q", got)
	}
}

// A caller that waits for an earlier event gives up when its context ends.
func TestWaitingEndsWithTheContext(t *testing.T) {
	h := open(t, Options{}, State{Pods: []Pod{pod("p")}})
	release, reached := make(chan struct{}), make(chan struct{})
	r := &recorder{refuse: func(event string) error {
		if event == "run" {
			close(reached)
			<-release
		}
		return nil
	}}
	h.join(r, "10")
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.RunPod(t.Context(), pod("q")); err != nil {
			t.Error(err)
		}
	})
	<-reached
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.CreateContainer(ctx, container("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// An event for an object that plugins do not know does not wait.
	h.RemoveContainer(t.Context(), "a")
	close(release)
	running.Wait()
}

func TestSocketOfAnotherIsLeftAlone(t *testing.T) {
	first := open(t, Options{}, State{})
	second := open(t, Options{Socket: first.opts.Socket}, State{})
	second.Close()
	r := &recorder{}
	first.join(r, "10")
	first.no(first.RunPod(t.Context(), pod("p")))
	r.await(t, "run p")
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nri.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	open(t, Options{Socket: path}, State{}).join(&recorder{}, "10")
}

// beLaunched runs this binary as an installed plugin. It writes its events to the file that its
// configuration names.
func beLaunched() int {
	p := &launched{}
	s, err := stub.New(p)
	if err != nil {
		return 1
	}
	if err := s.Run(context.Background()); err != nil {
		return 1
	}
	return 0
}

type launched struct{ file string }

func (l *launched) Configure(_ context.Context, config, runtime, release string) (api.EventMask, error) {
	l.file = strings.TrimSpace(config)
	return 0, l.note("configured by " + runtime + " " + release)
}

func (l *launched) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return l.note(fmt.Sprint("run ", p.GetNamespace(), "/", p.GetName(), " ", p.GetUid(), " ", p.GetIps(), " ", p.GetLinux().GetCgroupParent()))
}

func (l *launched) note(line string) error {
	f, err := os.OpenFile(l.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

func TestInstalledPluginIsLaunched(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(dir, "notes")
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "plugins"), 0o755), os.Mkdir(filepath.Join(dir, "conf.d"), 0o755),
		os.Symlink(self, filepath.Join(dir, "plugins", "10-noting")),
		os.WriteFile(filepath.Join(dir, "conf.d", "noting.conf"), []byte(notes+"\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, Options{PluginPath: filepath.Join(dir, "plugins"), PluginConfigPath: filepath.Join(dir, "conf.d")}, State{})
	h.no(h.RunPod(t.Context(), pod("p")))
	got, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	if want := "configured by mica " + version.String() + "\nrun space/name-p uid-p [10.0.0.7] /pods/p\n"; string(got) != want {
		t.Errorf("notes %q, want %q", got, want)
	}
}
