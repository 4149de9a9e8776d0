package nri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// TestMain runs this binary as a plugin if the plugins under test have launched it.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) != "" {
		os.Exit(beLaunched())
	}
	SetLogger(klog.Background())
	goleak.VerifyTestMain(m)
}

// recorder is a plugin that records the events it gets and answers as its fields say.
type recorder struct {
	stub   stub.Stub
	joined chan struct{} // closed when Synchronize is called

	create func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	refuse func(event string) error
	sync   func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate

	mu   sync.Mutex // guards sent
	sent []string
}

func (r *recorder) note(event, id string) error {
	r.mu.Lock()
	r.sent = append(r.sent, event+" "+id)
	r.mu.Unlock()
	if r.refuse != nil {
		return r.refuse(event)
	}
	return nil
}

func (r *recorder) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sent)
}

func (r *recorder) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, p := range pods {
		_ = r.note("sync", p.GetId())
	}
	for _, c := range containers {
		_ = r.note("sync", c.GetId()+" "+c.GetState().String())
	}
	close(r.joined)
	if r.sync == nil {
		return nil, nil
	}
	return r.sync(pods, containers), nil
}

func (r *recorder) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return r.note("run", p.GetId())
}

func (r *recorder) UpdatePodSandbox(_ context.Context, p *api.PodSandbox, _, resources *api.LinuxResources) error {
	return r.note("update", fmt.Sprintf("%s %d", p.GetId(), resources.GetCpu().GetShares().GetValue()))
}

func (r *recorder) PostUpdatePodSandbox(_ context.Context, p *api.PodSandbox) error {
	return r.note("updated", fmt.Sprintf("%s %d", p.GetId(), p.GetLinux().GetPodResources().GetCpu().GetShares().GetValue()))
}

func (r *recorder) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	return r.note("stop", p.GetId())
}

func (r *recorder) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	return r.note("remove", p.GetId())
}

func (r *recorder) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := r.note("create", c.GetId()); err != nil || r.create == nil {
		return nil, nil, err
	}
	return r.create(c)
}

func (r *recorder) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return r.note("created", c.GetId())
}

func (r *recorder) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return r.note("start", c.GetId())
}

func (r *recorder) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return r.note("started", fmt.Sprintf("%s pid %d", c.GetId(), c.GetPid()))
}

func (r *recorder) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := r.note("update", c.GetId()); err != nil || r.update == nil {
		return nil, err
	}
	return r.update(c, resources)
}

func (r *recorder) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return r.note("updated", fmt.Sprintf("%s %d", c.GetId(), c.GetLinux().GetResources().GetCpu().GetShares().GetValue()))
}

func (r *recorder) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, r.note("stop", fmt.Sprintf("%s code %d", c.GetId(), c.GetExitCode()))
}

func (r *recorder) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return r.note("remove", c.GetId())
}

// house is plugins with a runtime that records their requests.
type house struct {
	*Plugins
	t *testing.T

	fail func(id string) error

	mu      sync.Mutex // guards the fields below
	updates []Update
	evicted []string
}

// open starts plugins on a socket for this test.
func open(t *testing.T, o Options, s State) *house {
	t.Helper()
	dir := t.TempDir()
	o.Enable = true
	if o.Socket == "" {
		o.Socket = filepath.Join(dir, "nri.sock")
	}
	if o.PluginPath == "" {
		o.PluginPath = filepath.Join(dir, "plugins")
	}
	if o.PluginConfigPath == "" {
		o.PluginConfigPath = filepath.Join(dir, "conf.d")
	}
	h := &house{Plugins: New(o), t: t}
	t.Cleanup(h.Close)
	h.no(h.Start(t.Context(), s, Runtime{Update: h.limit, Evict: h.evictContainer}))
	return h
}

func (h *house) limit(_ context.Context, u Update) error {
	if h.fail != nil {
		if err := h.fail(u.ID); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.updates = append(h.updates, u)
	return nil
}

func (h *house) evictContainer(_ context.Context, id, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.evicted = append(h.evicted, id+": "+reason)
}

func (h *house) limited() []Update {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.updates)
}

func (h *house) no(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// join connects a plugin and returns once it has joined.
func (h *house) join(r *recorder, index string) {
	h.t.Helper()
	h.joinPlugin(r, r, index)
}

// joinPlugin is join for a plugin that is more than a recorder.
func (h *house) joinPlugin(plugin any, r *recorder, index string) {
	h.t.Helper()
	s, err := stub.New(plugin, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(h.opts.Socket))
	h.no(err)
	r.stub, r.joined = s, make(chan struct{})
	h.no(s.Start(h.t.Context()))
	h.t.Cleanup(s.Stop)
	<-r.joined
	// The library adds the plugin after its answer to Synchronize, but sends no event in between.
	h.no(h.tell(h.t.Context(), "wait", func() error { return nil }))
}

// await waits until the recorder has got the event.
func (r *recorder) await(t *testing.T, event string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !slices.Contains(r.events(), event) {
		if time.Now().After(deadline) {
			t.Fatalf("no event %q, but\n%s", event, strings.Join(r.events(), "\n"))
		}
		time.Sleep(time.Millisecond)
	}
}

func pod(id string) Pod {
	return Pod{
		ID: id, CgroupParent: "/pods/" + id, IPs: []string{"10.0.0.7"},
		Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "name-" + id, Namespace: "space", Uid: "uid-" + id}},
	}
}

// container is a container of the pod "p".
func container(id string) Container {
	return Container{
		ID: id, PodID: "p", Created: time.Unix(1, 0),
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "name-" + id}},
		Spec: &specs.Spec{
			Process: &specs.Process{Args: []string{"sleep"}, Env: []string{"PATH=/bin", "OLD=1"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 5}}},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/data", Source: "/srv/old"}},
			Linux: &specs.Linux{
				Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/net"}, {Type: specs.IPCNamespace, Path: "/run/ipc"}},
				Seccomp:    &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
			},
			Annotations: map[string]string{"old": "1"},
		},
	}
}
