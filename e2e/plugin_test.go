package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is an NRI plugin that adjusts every container and records its events.
type plugin struct {
	stub   stub.Stub
	joined chan struct{} // closed after Synchronize

	mu     sync.Mutex // guards what follows
	events []string
	evict  string // ID of a container to evict at the next creation
}

// answer adds the eviction, for which the library's plugin side has no API.
func (p *plugin) answer(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	answer, err := method(ctx, unmarshal)
	p.mu.Lock()
	defer p.mu.Unlock()
	if created, ok := answer.(*api.CreateContainerResponse); ok && p.evict != "" {
		created.Evict = []*api.ContainerEviction{{ContainerId: p.evict, Reason: "test"}}
	}
	return answer, err
}

func (p *plugin) note(event, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+id)
}

func (p *plugin) has(event, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.events, event+" "+id)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		p.note("pod", pod.GetId())
	}
	for _, c := range containers {
		p.note(c.GetState().String(), c.GetId())
		p.note(fmt.Sprintf("memory %d", c.GetLinux().GetResources().GetMemory().GetLimit().GetValue()), c.GetId())
	}
	close(p.joined)
	return nil, nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c.GetId())
	a := &api.ContainerAdjustment{}
	a.AddEnv("FROM_PLUGIN", c.GetName())
	a.AddRlimit("RLIMIT_NOFILE", 300, 200)
	a.SetLinuxCPUShares(700)
	return a, nil, nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note(fmt.Sprintf("stop with %d", c.GetExitCode()), c.GetId())
	return nil, nil
}

// join connects a plugin to the node.
func (f *fixture) join() *plugin {
	f.t.Helper()
	p := &plugin{joined: make(chan struct{})}
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("e2e"), stub.WithPluginIdx("10"), stub.WithSocketPath(f.PluginSocket()),
		stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.answer)}))
	f.no(err)
	f.no(p.stub.Start(f.ctx))
	f.t.Cleanup(p.stub.Stop)
	<-p.joined
	return p
}

func TestPluginsAdjustContainers(t *testing.T) {
	f := start(t)
	p := f.join()
	sandbox := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 300, MemoryLimitInBytes: 64 << 20}
	id := f.start(sandbox, config)
	if got, want := f.exec(id, "sh", "-c", "echo $FROM_PLUGIN; cat /proc/1/limits | grep 'open files' | tr -s ' '"), config.Metadata.Name+"\nMax open files 200 300 files \n"; got != want {
		t.Errorf("inside are %q, want %q", got, want)
	}
	limits := func() string {
		return f.exec(id, "sh", "-c", "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu.weight memory/memory.limit_in_bytes memory.max pids/pids.max pids.max 2>/dev/null; true")
	}
	if got := f.status(id).GetResources().GetLinux(); got.GetCpuShares() != 700 || got.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("resources in the status are %v", got)
	}
	before := limits()
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxMemoryLimit(32 << 20)
	u.SetLinuxPidLimits(50)
	unknown := &api.ContainerUpdate{}
	unknown.SetContainerId("unknown")
	unknown.SetLinuxCPUShares(2)
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u, unknown})
	f.no(err)
	if len(failed) != 1 || failed[0].GetContainerId() != "unknown" {
		t.Errorf("failed updates are %v", failed)
	}
	got := limits()
	if !strings.Contains(before, "67108864") || !strings.Contains(got, "33554432\n50\n") {
		t.Errorf("limits were %q and are %q", before, got)
	}
	if limit := f.status(id).GetResources().GetLinux().GetMemoryLimitInBytes(); limit != 32<<20 {
		t.Errorf("memory limit in the status is %d", limit)
	}
	short := f.start(sandbox, f.containerConfig(busyboxImage, "sh", "-c", "exit 3"))
	f.eventually("the plugin gets the stop event", func() bool { return p.has("stop with 3", short) })
}

func TestPluginsEvictContainers(t *testing.T) {
	f := start(t)
	p := f.join()
	sandbox := f.runPod(f.podConfig())
	victim := f.start(sandbox, f.containerConfig(busyboxImage, "sleep", "1000"))
	p.mu.Lock()
	p.evict = victim
	p.mu.Unlock()
	other := f.start(sandbox, f.containerConfig(busyboxImage, "sleep", "1000"))
	if got := f.await(victim); got.ExitCode != 137 {
		t.Errorf("the evicted container ended with %d", got.ExitCode)
	}
	if got := f.status(other).State; got != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the new container is %v", got)
	}
}

func TestPluginsAfterRestart(t *testing.T) {
	f := start(t)
	sandbox := f.runPod(f.podConfig())
	running := f.start(sandbox, f.containerConfig(busyboxImage, "sleep", "1000"))
	created := f.create(sandbox, f.containerConfig(busyboxImage, "sleep", "1000"))
	ended := f.start(sandbox, f.containerConfig(busyboxImage, "true"))
	f.await(ended)
	f.no(f.Runtime.UpdateContainerResources(f.ctx, running, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20},
	}))
	f.no(f.Kill())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	p := f.join()
	if !p.has("pod", sandbox.id) || !p.has("CONTAINER_RUNNING", running) || !p.has("memory 50331648", running) || !p.has("CONTAINER_CREATED", created) || len(p.events) != 5 {
		t.Errorf("the plugin's events are %q", p.events)
	}
}

func TestCDIDevices(t *testing.T) {
	f := start(t)
	f.no(os.MkdirAll(f.DeviceDir(), 0o755))
	f.no(os.WriteFile(filepath.Join(f.DeviceDir(), "vendor.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "vendor.example/class", "devices": [
		{"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/zero"}], "env": ["VENDOR=a"]}},
		{"name": "b", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo hook > `+f.DeviceDir()+`/mark"]}]}}]}`), 0o600))
	sandbox := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "head -c 4 /dev/vendor0 | wc -c; echo $VENDOR")
	config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/class=a"}}
	config.Annotations = map[string]string{"cdi.k8s.io/test": "vendor.example/class=b"}
	if got := f.output(sandbox, config); got != "4\na\n" {
		t.Errorf("the container printed %q", got)
	}
	if mark, err := os.ReadFile(filepath.Join(f.DeviceDir(), "mark")); err != nil || string(mark) != "hook\n" {
		t.Errorf("the hook left %q, %v", mark, err)
	}
	config = f.containerConfig(busyboxImage, "true")
	config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/class=absent"}}
	if _, err := f.Runtime.CreateContainer(f.ctx, sandbox.id, config, sandbox.config); err == nil || !strings.Contains(err.Error(), "class=absent") {
		t.Errorf("a missing device: %v", err)
	}
}

// hookFile writes an OCI hook file for the node. The hook appends mark to the node's file marks.
func (f *fixture) hookFile(name, when, stages string) {
	f.t.Helper()
	f.no(os.MkdirAll(f.HookDir(), 0o755))
	f.no(os.WriteFile(filepath.Join(f.HookDir(), name+".json"), []byte(fmt.Sprintf(
		`{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", "-c", "read state; echo %s >> %s"]}, "when": %s, "stages": %s}`,
		name, f.marks(), when, stages)), 0o600))
}

func (f *fixture) marks() string { return filepath.Join(f.Data, "marks") }

// takeMarks returns what hooks have written since the last call.
func (f *fixture) takeMarks() string {
	f.t.Helper()
	data, err := os.ReadFile(f.marks())
	if os.IsNotExist(err) {
		return ""
	}
	f.no(err)
	f.no(os.Remove(f.marks()))
	return string(data)
}

func TestHooks(t *testing.T) {
	f := start(t)
	sandbox := f.runPod(f.podConfig())
	f.hookFile("10-create", `{"always": true}`, `["prestart", "createRuntime"]`)
	f.hookFile("20-life", `{"annotations": {"^role$": "^data"}}`, `["poststart", "poststop"]`)
	f.hookFile("30-shell", `{"commands": ["/true$"]}`, `["createContainer"]`)
	f.hookFile("40-mounts", `{"hasBindMounts": true}`, `["createRuntime"]`)

	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Annotations = map[string]string{"role": "database"}
	// Old versions of runc run the stage poststart at create.
	id := f.start(sandbox, config)
	if got := f.takeMarks(); got != "10-create\n10-create\n20-life\n" {
		t.Errorf("the hooks at the start wrote %q", got)
	}
	// A container that survives the daemon keeps its hooks, and new files apply at once.
	f.no(f.Kill())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	f.no(os.Remove(filepath.Join(f.HookDir(), "10-create.json")))
	f.no(f.Runtime.StopContainer(f.ctx, id, 0))
	f.no(f.Runtime.RemoveContainer(f.ctx, id))
	if got := f.takeMarks(); got != "20-life\n" {
		t.Errorf("the hooks at the end wrote %q", got)
	}

	config = f.containerConfig(busyboxImage, "/bin/true")
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/mnt", HostPath: t.TempDir()}}
	f.await(f.start(sandbox, config))
	if got := f.takeMarks(); got != "40-mounts\n30-shell\n" {
		t.Errorf("the hooks of another container wrote %q", got)
	}
}

// With an invalid hook file, CreateContainer fails with an error that names the file; other calls
// succeed.
func TestBadHookFile(t *testing.T) {
	f := start(t)
	sandbox := f.runPod(f.podConfig())
	running := f.start(sandbox, f.containerConfig(busyboxImage, "sleep", "1000"))
	f.no(os.MkdirAll(f.HookDir(), 0o755))
	file := filepath.Join(f.HookDir(), "bad.json")
	for text, says := range map[string]string{
		`{"version": "1.0.0", `: "unexpected end of JSON",
		`{"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": {"always": true}, "stages": ["precreate"]}`: "precreate is not supported",
	} {
		f.no(os.WriteFile(file, []byte(text), 0o600))
		config := f.containerConfig(busyboxImage, "true")
		_, err := f.Runtime.CreateContainer(f.ctx, sandbox.id, config, sandbox.config)
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one with %s and %q", err, file, says)
		}
	}
	f.no(f.StopDaemon())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	if log := f.LogTail(30); !strings.Contains(log, file) {
		t.Error("the log of the start does not name the file")
	}
	if got := f.exec(running, "echo", "hi"); got != "hi\n" {
		t.Errorf("exec in a running container printed %q", got)
	}
	f.no(os.Remove(file))
	if got := f.await(f.start(sandbox, f.containerConfig(busyboxImage, "true"))); got.ExitCode != 0 {
		t.Errorf("without the file, the container exited with %d", got.ExitCode)
	}
}

// gate is an NRI plugin that delays the creation of pods and containers.
type gate struct {
	joined        chan struct{} // closed when the plugin joins
	entered, open chan string   // the ID of the object being created
}

func (g *gate) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	close(g.joined)
	return nil, nil
}

func (g *gate) pass(ctx context.Context, id string) error {
	g.entered <- id
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return g.pass(ctx, pod.GetId())
}

func (g *gate) CreateContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, g.pass(ctx, c.GetId())
}

// A client cancels its call and retries it, twice at the same time. The first call continues, and
// both retries return its object.
func TestRetriesJoinCancelledCalls(t *testing.T) {
	f := start(t)
	f.pull(busyboxImage)
	g := &gate{joined: make(chan struct{}), entered: make(chan string, 10), open: make(chan string)}
	s, err := stub.New(g, stub.WithPluginName("gate"), stub.WithPluginIdx("10"), stub.WithSocketPath(f.PluginSocket()))
	f.no(err)
	f.no(s.Start(f.ctx))
	t.Cleanup(s.Stop)
	<-g.joined // the plugin gets no events before

	config := f.podConfig()
	p := pod{id: f.giveUpAndRetry(g, func(ctx context.Context) (string, error) { return f.Runtime.RunPodSandbox(ctx, config, "") }), config: config}
	container := f.containerConfig(busyboxImage, "echo", "once")
	id := f.giveUpAndRetry(g, func(ctx context.Context) (string, error) {
		return f.Runtime.CreateContainer(ctx, p.id, container, config)
	})
	pods, err := f.Runtime.ListPodSandbox(f.ctx, nil)
	f.no(err)
	containers, err := f.Runtime.ListContainers(f.ctx, nil)
	f.no(err)
	if len(pods) != 1 || len(containers) != 1 {
		t.Errorf("%d pods and %d containers, want one of each", len(pods), len(containers))
	}
	f.no(f.Runtime.StartContainer(f.ctx, id))
	f.await(id)
	if got := text(f.log(p, container)); got != "once\n" {
		t.Errorf("container printed %q", got)
	}
}

// giveUpAndRetry cancels a call that has reached the gate, calls twice again, and opens the gate.
// It checks that both calls return the first call's ID, and returns the ID.
func (f *fixture) giveUpAndRetry(g *gate, call func(context.Context) (string, error)) string {
	f.t.Helper()
	ctx, giveUp := context.WithCancel(f.ctx)
	first := make(chan error, 1)
	go func() {
		_, err := call(ctx)
		first <- err
	}()
	begun := <-g.entered
	giveUp()
	if err := <-first; status.Code(err) != codes.Canceled {
		f.t.Errorf("cancelled call: %v, want Canceled", err)
	}
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			if id, err := call(f.ctx); err != nil || id != begun {
				f.t.Errorf("the retry returned %q, %v; want %s", id, err, begun)
			}
		})
	}
	g.open <- begun
	group.Wait()
	if len(g.entered) > 0 {
		f.t.Errorf("a second object was created: %s", <-g.entered)
	}
	return begun
}
