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
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is an NRI plugin that adjusts every container and notes what it is told.
type plugin struct {
	stub   stub.Stub
	joined chan struct{} // closed when it was told what is there

	mu    sync.Mutex // guards what follows
	told  []string
	evict string // ID of a container to end with the next creation
}

// answer adds the eviction, for which the library's plugin side has no words.
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
	p.told = append(p.told, event+" "+id)
}

func (p *plugin) has(event, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.told, event+" "+id)
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
	f.eventually("plugin learns of the end", func() bool { return p.has("stop with 3", short) })
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

func TestPluginsFindWhatOutlivedTheDaemon(t *testing.T) {
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
	if !p.has("pod", sandbox.id) || !p.has("CONTAINER_RUNNING", running) || !p.has("memory 50331648", running) || !p.has("CONTAINER_CREATED", created) || len(p.told) != 5 {
		t.Errorf("the plugin was told %q", p.told)
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
		t.Errorf("the container says %q", got)
	}
	if mark, err := os.ReadFile(filepath.Join(f.DeviceDir(), "mark")); err != nil || string(mark) != "hook\n" {
		t.Errorf("the hook left %q, %v", mark, err)
	}
	config = f.containerConfig(busyboxImage, "true")
	config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/class=absent"}}
	if _, err := f.Runtime.CreateContainer(f.ctx, sandbox.id, config, sandbox.config); err == nil || !strings.Contains(err.Error(), "class=absent") {
		t.Errorf("a device that is not there: %v", err)
	}
}
