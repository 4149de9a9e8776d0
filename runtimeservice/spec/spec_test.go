package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// TestContainerRefuses holds that a setting that cannot be fulfilled is an error of the right class
// that names the setting.
func TestContainerRefuses(t *testing.T) {
	bad, cannot := errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition
	mount := func(m *runtimeapi.Mount) func(*ContainerInput) {
		return func(in *ContainerInput) { in.Config.Mounts = []*runtimeapi.Mount{m} }
	}
	resources := func(r *runtimeapi.LinuxContainerResources) func(*ContainerInput) {
		return func(in *ContainerInput) { in.Config.Linux.Resources = r }
	}
	mapping := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	for _, c := range []struct {
		name   string
		change func(*ContainerInput)
		want   error
		text   string
	}{
		{"no name", func(in *ContainerInput) { in.Config.Metadata = nil }, bad, "metadata"},
		{"no pod name", func(in *ContainerInput) { in.Pod.Metadata = nil }, bad, "metadata"},
		{"windows", func(in *ContainerInput) { in.Config.Windows = &runtimeapi.WindowsContainerConfig{} }, bad, "windows"},
		{"relative rootfs", func(in *ContainerInput) { in.RootfsPath = "x" }, bad, "root filesystem"},
		{"no command", func(in *ContainerInput) { in.Image.Entrypoint, in.Image.Cmd = nil, nil }, bad, "no command"},
		{"empty command", func(in *ContainerInput) { in.Config.Command = []string{""} }, bad, "empty"},
		{"NUL in argument", func(in *ContainerInput) { in.Config.Args = []string{"a\x00b"} }, bad, "NUL"},
		{"relative cwd", func(in *ContainerInput) { in.Config.WorkingDir = "srv" }, bad, "working directory"},
		{"bad env", func(in *ContainerInput) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }, bad, "A=B"},
		{"NUL in image env", func(in *ContainerInput) { in.Image.Env = []string{"A=b\x00c"} }, bad, "image environment"},
		{"oom score", resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}), bad, "oom_score_adj"},
		{"unknown capability", func(in *ContainerInput) {
			security(in).Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"FLY"}}
		}, bad, "FLY"},
		{"capability not held", func(in *ContainerInput) {
			security(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
		}, cannot, "CAP_SYS_RESOURCE"},
		{"ambient capability not held", func(in *ContainerInput) {
			security(in).Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"SYS_RESOURCE"}}
		}, cannot, "CAP_SYS_RESOURCE"},
		{"privileged in a plain pod", func(in *ContainerInput) { security(in).Privileged = true }, bad, "privileged"},
		{"user and username", func(in *ContainerInput) {
			security(in).RunAsUser, security(in).RunAsUsername = &runtimeapi.Int64Value{}, "x"
		}, bad, "run_as_username"},
		{"group alone", func(in *ContainerInput) { security(in).RunAsGroup = &runtimeapi.Int64Value{} }, bad, "run_as_group"},
		{"no seccomp here", func(in *ContainerInput) {
			in.Host.Seccomp = false
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		}, cannot, "seccomp"},
		{"seccomp without name", func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "")
		}, bad, "seccomp"},
		{"seccomp relative", func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "a.json")
		}, bad, "a.json"},
		{"seccomp not read", func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/a.json")
		}, bad, "empty"},
		{"seccomp not JSON", func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/a.json")
			in.SeccompProfile = []byte("{")
		}, bad, "/a.json"},
		{"seccomp without action", func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/a.json")
			in.SeccompProfile = []byte("{}")
		}, bad, "default action"},
		{"old seccomp field", func(in *ContainerInput) { security(in).SeccompProfilePath = "strange" }, bad, "strange"}, //nolint:staticcheck // deprecated: older clients send only this
		{"AppArmor without name", func(in *ContainerInput) {
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "")
		}, bad, "apparmor"},
		{"no AppArmor here", func(in *ContainerInput) {
			in.Host.AppArmor = false
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "p")
		}, cannot, "AppArmor"},
		{"no default AppArmor profile", func(in *ContainerInput) {
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		}, cannot, "RuntimeDefault"},
		{"reference with RuntimeDefault", func(in *ContainerInput) {
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault, "p")
		}, bad, "localhost_ref"},
		{"log outside", func(in *ContainerInput) { in.Config.LogPath = "../x.log" }, bad, "../x.log"},
		{"log is the directory", func(in *ContainerInput) { in.Config.LogPath = "./." }, bad, "\"./.\" is not below"},
		{"log without directory", func(in *ContainerInput) { in.Config.LogPath, in.Pod.LogDirectory = "x", "" }, bad, "log directory"},
		{"mount on root", mount(&runtimeapi.Mount{ContainerPath: "/x/..", HostPath: "/a"}), bad, "/x/.."},
		{"mount of relative path", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "a"}), bad, "not absolute"},
		{"mount of a writable image", mount(&runtimeapi.Mount{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "i"}}), bad, "read-only only"},
		{"mount of both", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", Image: &runtimeapi.ImageSpec{}}), bad, "exclude"},
		{"sub path alone", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", ImageSubPath: "b"}), bad, "image_sub_path"},
		{"sub path out", mount(&runtimeapi.Mount{ContainerPath: "/x", Readonly: true, Image: &runtimeapi.ImageSpec{}, ImageSubPath: "../b"}), bad, "../b"},
		{"image mount not mounted", mount(&runtimeapi.Mount{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{}}), bad, "/x"},
		{"rro alone", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", RecursiveReadOnly: true}), bad, "readonly"},
		{"rro with propagation", mount(&runtimeapi.Mount{
			ContainerPath: "/x", HostPath: "/a", Readonly: true, RecursiveReadOnly: true,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}), bad, "propagation"},
		{"rro not known", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", Readonly: true, RecursiveReadOnly: true}), crierrors.ErrRROUnsupported, "/x"},
		{"id-mapped mount not known", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", UidMappings: mapping}), cannot, "id-mapped"},
		{"option that changes access", mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", MountOptions: []string{"rw"}}), bad, `"rw"`},
		{"option not known", func(in *ContainerInput) {
			in.Features = listed("nodev")
			mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a", MountOptions: []string{"noexec"}})(in)
		}, cannot, "noexec"},
		{"sources missing", func(in *ContainerInput) {
			in.MountSources = []string{}
			mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/a"})(in)
		}, bad, "sources"},
		{"device not resolved", func(in *ContainerInput) { in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null"}} }, bad, "/dev/null"},
		{"device permissions", func(in *ContainerInput) {
			in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", Permissions: "rx"}}
		}, bad, "rx"},
		{"no CDI", func(in *ContainerInput) { in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/gpu=1"}} }, cannot, "v.com/gpu=1"},
		{"unified on v1", resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"pids.max": "1"}}), cannot, "unified"},
		{"unified path", func(in *ContainerInput) {
			in.Host.CgroupV2 = true
			resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}})(in)
		}, bad, "../memory.max"},
		{"negative shares", resources(&runtimeapi.LinuxContainerResources{CpuShares: -5}), bad, "cpu"},
		{"negative memory", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -5}), bad, "memory"},
		{"swap below memory", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 50}), bad, "50"},
		{"swap not accounted", func(in *ContainerInput) {
			in.Host.SwapAccounting = false
			resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 200})(in)
		}, cannot, "swap"},
		{"huge page size", resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../x"}}}), bad, "../x"},
		{"no hugetlb", func(in *ContainerInput) {
			in.Host.HugetlbCgroup = false
			resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}})(in)
		}, cannot, "hugetlb"},
		{"container network", func(in *ContainerInput) {
			security(in).NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER}
		}, bad, "network"},
		{"target without id", func(in *ContainerInput) {
			security(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}
		}, bad, "target_id"},
		{"other user namespace than the pod's", func(in *ContainerInput) {
			security(in).NamespaceOptions = &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping},
			}
		}, bad, "differs"},
		{"user namespace refused", func(in *ContainerInput) {
			podSecurity(in).NamespaceOptions = &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Uids: mapping, Gids: mapping},
			}
		}, cannot, "user namespace"},
		{"user namespace not asked for", func(in *ContainerInput) { in.Namespaces.User = "/run/ns/user" }, bad, "user namespace"},
		{"edit fails", func(in *ContainerInput) {
			in.Edits = []func(*specs.Spec) error{func(*specs.Spec) error { return errdefs.ErrInternal }}
		}, errdefs.ErrInternal, "web"},
		{"stdin_once alone", func(in *ContainerInput) { in.Config.StdinOnce = true }, bad, "stdin_once"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := request()
			c.change(&in)
			s, err := Container(in)
			if !errors.Is(err, c.want) || s != nil {
				t.Fatalf("Container = %v, %v, want error %v", s, err, c.want)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %q does not mention %q", err, c.text)
			}
		})
	}
}

func TestValidatePod(t *testing.T) {
	if err := ValidatePod(request().Pod); err != nil {
		t.Fatal(err)
	}
	options := func(o *runtimeapi.NamespaceOption) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions = o }
	}
	sysctl := func(name string, o *runtimeapi.NamespaceOption) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{name: "1"}
			p.Linux.SecurityContext.NamespaceOptions = o
		}
	}
	onNode := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
	for _, c := range []struct {
		name   string
		change func(*runtimeapi.PodSandboxConfig)
		ok     bool
	}{
		{"no name", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = "" }, false},
		{"windows", func(p *runtimeapi.PodSandboxConfig) { p.Windows = &runtimeapi.WindowsPodSandboxConfig{} }, false},
		{"long hostname", func(p *runtimeapi.PodSandboxConfig) { p.Hostname = strings.Repeat("a", 65) }, false},
		{"hostname at the limit", func(p *runtimeapi.PodSandboxConfig) { p.Hostname = strings.Repeat("a", 64) }, true},
		{"relative log directory", func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "logs" }, false},
		{"log directory with ..", func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "/logs/../x" }, false},
		{"cgroup parent with ..", func(p *runtimeapi.PodSandboxConfig) { p.Linux.CgroupParent = "/a/../b" }, false},
		{"host ports at the limit", func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = slices.Repeat([]*runtimeapi.PortMapping{{HostPort: 1}}, maxHostPorts)
		}, true},
		{"many ports of a pod in the node's network", func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = slices.Repeat([]*runtimeapi.PortMapping{{HostPort: 1, ContainerPort: 1}}, maxHostPorts+1)
			p.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			}}
		}, true},
		{"many host ports", func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = slices.Repeat([]*runtimeapi.PortMapping{{HostPort: 1}}, maxHostPorts+1)
		}, false},
		{"many ports of the pod", func(p *runtimeapi.PodSandboxConfig) {
			p.PortMappings = slices.Repeat([]*runtimeapi.PortMapping{{ContainerPort: 1}}, maxHostPorts+1)
		}, true},
		{"group without user", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{}
		}, false},
		{"bad profile", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "")
		}, false},
		{"pid target", options(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"}), false},
		{"container ipc", options(&runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_CONTAINER}), false},
		{"all of the node", options(onNode), true},
		{"user mappings of one kind", options(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{
			Uids: []*runtimeapi.IDMapping{{Length: 1}},
		}}), false},
		{"user mappings of the node", options(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_NODE, Uids: []*runtimeapi.IDMapping{{Length: 1}}, Gids: []*runtimeapi.IDMapping{{Length: 1}},
		}}), false},
		{"net sysctl", sysctl("net.ipv4.ip_forward", nil), true},
		{"net sysctl with slashes", sysctl("net/ipv4/ip_forward", nil), true},
		{"net sysctl on the node", sysctl("net.ipv4.ip_forward", onNode), false},
		{"ipc sysctl", sysctl("kernel.shmmax", nil), true},
		{"ipc sysctl on the node", sysctl("fs.mqueue.msg_max", onNode), false},
		{"global sysctl", sysctl("kernel.panic", nil), false},
		{"sysctl with ..", sysctl("net/../kernel/panic", nil), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := request().Pod
			c.change(pod)
			err := ValidatePod(pod)
			if c.ok && err != nil {
				t.Errorf("ValidatePod = %v", err)
			}
			if !c.ok && !errdefs.IsInvalidArgument(err) {
				t.Errorf("ValidatePod = %v, want invalid argument", err)
			}
		})
	}
}

// TestSeccompFollowsCapabilities holds that the default filter allows the system calls of granted
// capabilities, and no others.
func TestSeccompFollowsCapabilities(t *testing.T) {
	allowed := func(add ...string) bool {
		in := request()
		security(&in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
		security(&in).Capabilities = &runtimeapi.Capability{AddCapabilities: add}
		s, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, "mount")
		})
	}
	if allowed() {
		t.Error("mount(2) is allowed without CAP_SYS_ADMIN")
	}
	if !allowed("SYS_ADMIN") {
		t.Error("mount(2) is refused with CAP_SYS_ADMIN")
	}
}

func TestUnsetAndOldProfiles(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*runtimeapi.LinuxContainerSecurityContext)
		seccomp bool
		armor   string
	}{
		{"unset", func(*runtimeapi.LinuxContainerSecurityContext) {}, false, "default"},
		{"unconfined", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined, "")
			sc.Apparmor = profile(runtimeapi.SecurityProfile_Unconfined, "")
		}, false, ""},
		{"old default", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.SeccompProfilePath, sc.ApparmorProfile = "runtime/default", "runtime/default" //nolint:staticcheck // deprecated: older clients send only these
		}, true, "default"},
		{"old localhost", func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.SeccompProfilePath, sc.ApparmorProfile = "unconfined", "localhost/mine" //nolint:staticcheck // deprecated: older clients send only these
		}, false, "mine"},
	} {
		in := request()
		in.Host.AppArmorDefault = "default"
		c.change(security(&in))
		s, err := Container(in)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if (s.Linux.Seccomp != nil) != c.seccomp || s.Process.ApparmorProfile != c.armor {
			t.Errorf("%s: seccomp %v, AppArmor %q", c.name, s.Linux.Seccomp != nil, s.Process.ApparmorProfile)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := node().Capabilities
	without := func(list []string, drop ...string) []string {
		return slices.DeleteFunc(sorted(list), func(c string) bool { return slices.Contains(drop, c) })
	}
	for _, c := range []struct {
		name               string
		add, drop, ambient []string
		want, wantAmbient  []string
	}{
		{name: "default", want: sorted(defaultCapabilities())},
		{name: "add all", add: []string{"ALL"}, want: sorted(all)},
		{name: "add all, drop one", add: []string{"ALL"}, drop: []string{"CHOWN"}, want: without(all, "CAP_CHOWN")},
		{name: "drop all", drop: []string{"ALL"}},
		{name: "drop all, add one", add: []string{"chown"}, drop: []string{"ALL"}, want: []string{"CAP_CHOWN"}},
		{name: "add and drop one", add: []string{"SYS_ADMIN"}, drop: []string{"SYS_ADMIN"}, want: sorted(defaultCapabilities())},
		{
			name: "ambient", drop: []string{"ALL"}, ambient: []string{"KILL", "CHOWN"},
			want: []string{"CAP_CHOWN", "CAP_KILL"}, wantAmbient: []string{"CAP_CHOWN", "CAP_KILL"},
		},
		{name: "ambient dropped", drop: []string{"ALL", "KILL"}, ambient: []string{"KILL"}},
	} {
		in := request()
		security(&in).Capabilities = &runtimeapi.Capability{
			AddCapabilities: c.add, DropCapabilities: c.drop, AddAmbientCapabilities: c.ambient,
		}
		s, err := Container(in)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := s.Process.Capabilities
		if !slices.Equal(got.Bounding, c.want) || !slices.Equal(got.Ambient, c.wantAmbient) ||
			!slices.Equal(got.Effective, got.Bounding) || !slices.Equal(got.Permitted, got.Bounding) ||
			!slices.Equal(got.Inheritable, got.Ambient) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want []string }{
		{[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, nil, []string{"x"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, []string{"a"}, []string{"x", "a"}},
		{nil, []string{"c"}, nil, nil, []string{"c"}},
	} {
		in := request()
		in.Image.Entrypoint, in.Image.Cmd = c.entrypoint, c.cmd
		in.Config.Command, in.Config.Args = c.command, c.args
		got, err := commandLine(in)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

func TestProcess(t *testing.T) {
	s, err := Container(request())
	if err != nil {
		t.Fatal(err)
	}
	before := *s.Process
	p, err := Process(ProcessArgs{Spec: s, Args: []string{"id"}, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	want := *s.Process
	want.Args, want.Terminal = []string{"id"}, true
	want.Env = append(slices.Clone(want.Env), "TERM=xterm")
	if diff := cmp.Diff(want, *p); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, *s.Process); diff != "" {
		t.Errorf("the container's process changed: %s", diff)
	}
	for _, args := range [][]string{nil, {""}, {"a\x00"}} {
		if _, err := Process(ProcessArgs{Spec: s, Args: args}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Process(%q) = %v", args, err)
		}
	}
}

// TestResourcesWithoutControllers holds which settings are dropped on purpose.
func TestResourcesWithoutControllers(t *testing.T) {
	h := node()
	h.SwapAccounting, h.HugetlbCgroup = false, false
	r, err := Resources(&runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 100,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}},
	}, h)
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(100)
	if diff := cmp.Diff(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}, r); diff != "" {
		t.Error(diff)
	}
	if r, err := Resources(nil, h); err != nil || !cmp.Equal(r, &specs.LinuxResources{}) {
		t.Errorf("Resources(nil) = %v, %v", r, err)
	}
}
