package nri

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func injectMark(s *specs.Spec, devices []string) error {
	s.Process.Env = append(s.Process.Env, "CDI="+strings.Join(devices, ","))
	return nil
}

// Every mount at a path goes when a plugin removes the path.
func TestAdjustRemovesEveryMount(t *testing.T) {
	s := container("a").Spec
	s.Mounts = append(s.Mounts, s.Mounts...)
	a := &api.ContainerAdjustment{}
	a.RemoveMount("/data")
	if err := adjust(s, a, nil); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/data" }) {
		t.Errorf("mounts: %v", s.Mounts)
	}
}

func TestAdjust(t *testing.T) {
	for _, test := range []struct {
		name string
		ask  func(*api.ContainerAdjustment)
		want func(*specs.Spec)
	}{
		{"nothing", func(*api.ContainerAdjustment) {}, func(*specs.Spec) {}},
		{
			"environment",
			func(a *api.ContainerAdjustment) { a.AddEnv("OLD", "2"); a.AddEnv("NEW", "3"); a.RemoveEnv("PATH") },
			func(s *specs.Spec) { s.Process.Env = []string{"OLD=2", "NEW=3"} },
		},
		{
			"arguments and annotations",
			func(a *api.ContainerAdjustment) {
				a.SetArgs([]string{"true"})
				a.AddAnnotation("new", "2")
				a.RemoveAnnotation("old")
			},
			func(s *specs.Spec) { s.Process.Args, s.Annotations = []string{"true"}, map[string]string{"new": "2"} },
		},
		{
			"a mount in place of another, another one gone",
			func(a *api.ContainerAdjustment) {
				a.RemoveMount("/proc")
				a.AddMount(&api.Mount{Destination: "/data", Source: "/srv/new", Type: "bind", Options: []string{"ro"}})
			},
			func(s *specs.Spec) {
				s.Mounts = []specs.Mount{{Destination: "/data", Source: "/srv/new", Type: "bind", Options: []string{"ro"}}}
			},
		},
		{
			"hooks",
			func(a *api.ContainerAdjustment) {
				a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/a"}}, Poststop: []*api.Hook{{Path: "/bin/b", Args: []string{"b"}}}})
			},
			func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/a"}}, Poststop: []specs.Hook{{Path: "/bin/b", Args: []string{"b"}}}}
			},
		},
		{
			"a limit of the process in place of another",
			func(a *api.ContainerAdjustment) {
				a.AddRlimit("RLIMIT_NOFILE", 20, 15)
				a.AddRlimit("RLIMIT_CORE", 0, 0)
			},
			func(s *specs.Spec) {
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 15}, {Type: "RLIMIT_CORE"}}
			},
		},
		{
			"resources",
			func(a *api.ContainerAdjustment) {
				a.SetLinuxCPUShares(100)
				a.SetLinuxCPUSetCPUs("0-1")
				a.SetLinuxMemoryLimit(1 << 20)
				a.SetLinuxPidLimits(9)
			},
			func(s *specs.Spec) {
				shares, memory, pids := uint64(100), int64(1<<20), int64(9)
				s.Linux.Resources = &specs.LinuxResources{
					CPU: &specs.LinuxCPU{Shares: &shares, Cpus: "0-1"}, Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids},
				}
			},
		},
		{
			"namespaces and sysctls",
			func(a *api.ContainerAdjustment) {
				a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc", Path: "/run/other"})
				a.SetLinuxSysctl("net.core.somaxconn", "9")
			},
			func(s *specs.Spec) {
				s.Linux.Namespaces[1].Path = "/run/other"
				s.Linux.Sysctl = map[string]string{"net.core.somaxconn": "9"}
			},
		},
		{
			"CDI devices",
			func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v.example/c=d"}) },
			func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "CDI=v.example/c=d") },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, want := container("a").Spec, container("a").Spec
			ask := &api.ContainerAdjustment{}
			test.ask(ask)
			test.want(want)
			if err := adjust(got, ask, injectMark); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(sameResources)); diff != "" {
				t.Errorf("specification (-want +got):\n%s", diff)
			}
		})
	}
}

// sameResources treats empty parts of resources as absent.
func sameResources(a, b *specs.LinuxResources) bool {
	return proto.Equal(toMessage(a), toMessage(b))
}

func toMessage(r *specs.LinuxResources) *api.LinuxResources {
	return api.FromOCILinuxResources(r, nil).Strip()
}

func TestAdjustRefusesWhatItCannotDo(t *testing.T) {
	for name, ask := range map[string]func(*api.ContainerAdjustment){
		"cgroup /elsewhere": func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/elsewhere") },
		"PID namespace": func(a *api.ContainerAdjustment) {
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "pid", Path: "/x"})
		},
		"block I/O class":     func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("fast") },
		"RDT class":           func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") },
		"no CDI on this node": func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v.example/c=d"}) },
	} {
		t.Run(name, func(t *testing.T) {
			a := &api.ContainerAdjustment{}
			ask(a)
			err := adjust(container("a").Spec, a, nil)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPluginsAdjustAndUpdate(t *testing.T) {
	h := open(t, Options{}, State{Pods: []Pod{pod("p")}, Containers: []Container{container("old"), container("gone")}})
	h.fail = func(id string) error {
		if id == "gone" {
			return errdefs.ErrNotFound
		}
		return nil
	}
	strict := false
	r := &recorder{create: func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if c.GetName() != "name-new" || c.GetLinux().GetSeccompPolicy() == nil || c.GetAnnotations()["old"] != "1" {
			t.Errorf("got event for %v", c)
		}
		a := &api.ContainerAdjustment{}
		a.AddEnv("PLUGIN", "was here")
		a.SetLinuxCPUShares(100)
		old, gone := &api.ContainerUpdate{}, &api.ContainerUpdate{}
		old.SetContainerId("old")
		old.SetLinuxCPUSetCPUs("1")
		old.SetLinuxMemorySwappiness(5)
		gone.SetContainerId("gone")
		gone.SetLinuxCPUShares(2)
		if !strict {
			gone.SetIgnoreFailure()
		}
		return a, []*api.ContainerUpdate{old, gone}, nil
	}}
	h.join(r, "10")
	c := container("new")
	changed, err := h.CreateContainer(t.Context(), c)
	h.no(err)
	if env := c.Spec.Process.Env; env[len(env)-1] != "PLUGIN=was here" {
		t.Errorf("environment %q", env)
	}
	if diff := cmp.Diff(&runtimeapi.LinuxContainerResources{CpuShares: 100}, changed, protocmp.Transform()); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if got := h.limited(); len(got) != 1 || got[0].ID != "old" || got[0].Resources.GetCpusetCpus() != "1" || *got[0].Direct.Memory.Swappiness != 5 {
		t.Errorf("others: %+v", got)
	}
	if sent, _ := h.container("new"); sent.GetLinux().GetSeccompPolicy() != nil || sent.GetLinux().GetResources().GetCpu().GetShares().GetValue() != 100 {
		t.Errorf("remembered %v", sent)
	}
	strict = true
	if _, err := h.CreateContainer(t.Context(), container("new")); !errdefs.IsNotFound(err) {
		t.Errorf("an update that must not fail: %v", err)
	}
}

func TestPluginsChangeAnUpdate(t *testing.T) {
	h := open(t, Options{}, State{Pods: []Pod{pod("p")}, Containers: []Container{container("a"), container("b")}})
	asked := &runtimeapi.LinuxContainerResources{CpuShares: 10, MemoryLimitInBytes: 1 << 30, OomScoreAdj: 7}
	r := &recorder{}
	h.join(r, "10")
	got, err := h.UpdateContainer(t.Context(), "a", asked)
	h.no(err)
	if diff := cmp.Diff(asked, got.Resources, protocmp.Transform()); diff != "" {
		t.Errorf("left alone (-want +got):\n%s", diff)
	}
	r.update = func(_ *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		own, other := &api.ContainerUpdate{}, &api.ContainerUpdate{}
		own.SetContainerId("a")
		own.SetLinuxCPUShares(resources.GetCpu().GetShares().GetValue() * 2)
		other.SetContainerId("b")
		other.SetLinuxMemoryLimit(1 << 20)
		return []*api.ContainerUpdate{own, other}, nil
	}
	got, err = h.UpdateContainer(t.Context(), "a", asked)
	h.no(err)
	if diff := cmp.Diff(&runtimeapi.LinuxContainerResources{CpuShares: 20, MemoryLimitInBytes: 1 << 30, OomScoreAdj: 7}, got.Resources, protocmp.Transform()); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	if others := h.limited(); len(others) != 1 || others[0].ID != "b" || others[0].Resources.GetMemoryLimitInBytes() != 1<<20 {
		t.Errorf("others: %+v", others)
	}
	shares := uint64(20)
	h.Limited("a", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}})
	h.PostUpdateContainer(t.Context(), "a")
	r.await(t, "updated a 20")
}

// A plugin may request changes at any time, also while it answers an event.
func TestUnsolicitedUpdates(t *testing.T) {
	h := open(t, Options{}, State{Pods: []Pod{pod("p")}, Containers: []Container{container("a")}})
	h.fail = func(id string) error {
		if id != "a" {
			return errors.New("no such container")
		}
		return nil
	}
	ask := func(id string) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxPidLimits(9)
		return u
	}
	r := &recorder{}
	r.refuse = func(event string) error {
		if event != "start" {
			return nil
		}
		failed, err := r.stub.UpdateContainers([]*api.ContainerUpdate{ask("a"), ask("b")})
		if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "b" {
			t.Errorf("failed %v, %v; want that of b", failed, err)
		}
		return nil
	}
	h.join(r, "10")
	h.no(h.StartContainer(t.Context(), "a"))
	if got := h.limited(); len(got) != 1 || *got[0].Direct.Pids.Limit != 9 {
		t.Errorf("updates: %+v", got)
	}
}

func TestUpdateOfRefuses(t *testing.T) {
	for name, ask := range map[string]func(*api.ContainerUpdate){
		"block I/O class": func(u *api.ContainerUpdate) { u.SetLinuxBlockIOClass("x") },
		"RDT class":       func(u *api.ContainerUpdate) { u.SetLinuxRDTClass("x") },
		"real-time":       func(u *api.ContainerUpdate) { u.SetLinuxCPURealtimePeriod(1) },
	} {
		u := &api.ContainerUpdate{}
		ask(u)
		if _, err := updateOf(u); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResourcesKeepTheirValue(t *testing.T) {
	full := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 1, CpuQuota: -1, CpuShares: 3, MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 5, CpusetCpus: "0", CpusetMems: "1",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 6}}, Unified: map[string]string{"memory.high": "7"},
	}
	if diff := cmp.Diff(full, toCRI(fromCRI(full)), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := toCRI(fromCRI(&runtimeapi.LinuxContainerResources{})); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func TestEvictions(t *testing.T) {
	h := &house{t: t}
	h.Plugins = &Plugins{runtime: Runtime{Evict: h.evictContainer}}
	ctx, gathered := withEvictions(t.Context())
	for method, answer := range map[string]proto.Message{
		"CreateContainer": &api.CreateContainerResponse{Evict: []*api.ContainerEviction{{ContainerId: "a", Reason: "too big"}}},
		"StopContainer":   &api.StopContainerResponse{},
	} {
		invoke := func(_ context.Context, _ *ttrpc.Request, resp *ttrpc.Response) error {
			var err error
			resp.Payload, err = proto.Marshal(answer)
			return err
		}
		h.no(collectEvictions(ctx, &ttrpc.Request{Method: method}, &ttrpc.Response{}, nil, invoke))
	}
	h.evict(ctx, gathered)
	if diff := cmp.Diff([]string{"a: too big"}, h.evicted); diff != "" {
		t.Errorf("evicted (-want +got):\n%s", diff)
	}
}
