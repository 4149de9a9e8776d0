package spec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testspec"
)

var update = flag.Bool("update", false, "write the golden files")

// node returns a host with all features, on cgroup v1.
func node() Host {
	return Host{
		Hostname:     "node1",
		Capabilities: append(defaultCapabilities(), "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),
		Seccomp:      true, AppArmor: true, SELinux: true, SwapAccounting: true, HugetlbCgroup: true, RecursiveReadOnly: true,
		OOMScoreAdjMin: -1000, RaiseRlimits: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 20000}},
		Devices: []specs.LinuxDevice{
			{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232},
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		},
	}
}

// request returns the smallest input that gives a container.
func request() ContainerInput {
	return ContainerInput{
		ID: "c0ffee", PodID: "badcab1e",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 1},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "example.com/web:1"},
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
		},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod1", Namespace: "default", Uid: "u-1"},
			Hostname:     "pod1",
			LogDirectory: "/var/log/pods/pod1",
			Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
		},
		Image:       ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, Env: []string{"LANG=C"}},
		Host:        node(),
		RootfsPath:  "/var/lib/mica/overlay2/x/merged",
		User:        User{Home: "/root"},
		Namespaces:  Namespaces{Net: "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts", User: HostNamespace},
		CgroupsPath: "/kubepods/pod1/c0ffee",
	}
}

func security(in *ContainerInput) *runtimeapi.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

func podSecurity(in *ContainerInput) *runtimeapi.LinuxSandboxSecurityContext {
	return in.Pod.Linux.SecurityContext
}

func listed(options ...string) *features.Features {
	yes := true
	return &features.Features{
		MountOptions: options,
		Linux:        &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}}},
	}
}

func profile(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

// goldenCases modify request; the expected result is testdata/<name>.json.
func goldenCases() map[string]func(*ContainerInput) {
	return map[string]func(*ContainerInput){
		"minimal": func(*ContainerInput) {},
		"cgroup-v2": func(in *ContainerInput) {
			in.Host.CgroupV2 = true
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1000000"}}
		},
		"process": func(in *ContainerInput) {
			in.Config.Command, in.Config.Args = []string{"/bin/sh", "-c"}, []string{"sleep 1"}
			in.Config.WorkingDir = "/srv"
			in.Config.Tty, in.Config.Stdin = true, true
			in.Config.Envs = []*runtimeapi.KeyValue{
				{Key: "LANG", Value: []byte("de_DE.UTF-8")}, {Key: "EMPTY"}, {Key: "PATH", Value: []byte("/bin")},
			}
			in.User = User{UID: 1000, GID: 100, Additional: []uint32{100, 2000}, Username: "app", Home: "/home/app"}
			in.Host.RaiseRlimits = false
			in.Host.OOMScoreAdjMin = 0
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -997}
			in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1048576}, {Type: "RLIMIT_CORE"}}
			security(in).NoNewPrivs = true
			security(in).ReadonlyRootfs = true
		},
		"privileged": func(in *ContainerInput) {
			in.Host.CgroupV2 = true
			security(in).Privileged, podSecurity(in).Privileged = true, true
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
			security(in).Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			in.ProcessLabel, in.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
			in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/fuse"}}
			in.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 1, Minor: 3}}
		},
		"confined": func(in *ContainerInput) {
			in.Host.AppArmorDefault = "mica-default"
			in.ProcessLabel, in.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
			security(in).Capabilities = &runtimeapi.Capability{
				AddCapabilities: []string{"net_admin", "CAP_SYS_PTRACE"}, DropCapabilities: []string{"all"},
				AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
			}
			security(in).MaskedPaths, security(in).ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		},
		"localhost-profiles": func(in *ContainerInput) {
			security(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/profiles/a.json")
			in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`)
			security(in).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "my-profile")
		},
		"host-namespaces": func(in *ContainerInput) {
			in.Pod.Hostname = ""
			in.Namespaces = Namespaces{Net: HostNamespace, IPC: HostNamespace, UTS: HostNamespace, PID: HostNamespace, User: HostNamespace}
		},
		"new-namespaces": func(in *ContainerInput) {
			in.Namespaces = Namespaces{PID: "/proc/77/ns/pid"}
			in.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"user-namespace": func(in *ContainerInput) {
			m := []*runtimeapi.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}}
			podSecurity(in).NamespaceOptions = &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m},
			}
			in.Namespaces.User, in.Namespaces.Net = "/run/ns/user", HostNamespace
			in.Features = listed()
			in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/v", UidMappings: m, GidMappings: m}}
		},
		"mounts": func(in *ContainerInput) {
			in.Features = listed("rro", "noexec", "nodev", "rnosuid")
			in.Mounts = []Mount{
				{Source: "/run/p/hosts", Destination: "/etc/hosts"},
				{Source: "/run/p/resolv.conf", Destination: "/etc/resolv.conf", ReadOnly: true},
				{Source: "/run/p/shm", Destination: "/dev/shm", Options: []string{"nosuid", "nodev", "noexec"}},
			}
			in.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/a/b/c", HostPath: "/deep"},
				{ContainerPath: "/a/", HostPath: "/link", Readonly: true},
				{ContainerPath: "/etc/hosts", HostPath: "/own-hosts"},
				{ContainerPath: "/s", HostPath: "/s", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
				{ContainerPath: "/rro", HostPath: "/rro", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/o", HostPath: "/o", MountOptions: []string{"noexec", "nodev", "rnosuid"}},
				{ContainerPath: "/img", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "sha256:5678"}},
			}
			in.MountSources = []string{"/deep", "/target", "/own-hosts", "/s", "/rro", "/o", "/run/views/1"}
		},
		"bidirectional-mount-over-dev": func(in *ContainerInput) {
			in.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/dev", HostPath: "/dev"},
				{ContainerPath: "/s", HostPath: "/s", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
				{ContainerPath: "/t", HostPath: "/t", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			}
		},
		"resources": func(in *ContainerInput) {
			in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 28,
				CpusetCpus: "0-1", CpusetMems: "0", OomScoreAdj: 900,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
			}
		},
		"devices": func(in *ContainerInput) {
			major, minor := int64(10), int64(229)
			in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/f", Permissions: "rw"}}
			in.Devices = []specs.LinuxDevice{{Path: "/dev/f", Type: "c", Major: major, Minor: minor}}
			in.DeviceRules = []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}}
		},
		"edits": func(in *ContainerInput) {
			in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/gpu=1"}}
			in.Config.Annotations = map[string]string{"cdi.k8s.io/x": "v.com/gpu=1,v.com/gpu=2"}
			in.CDI = func(s *specs.Spec, devices []string) error {
				for _, d := range devices {
					s.Process.Env = append(s.Process.Env, "CDI="+d)
				}
				return nil
			}
			in.Edits = []func(*specs.Spec) error{func(s *specs.Spec) error {
				s.Annotations["edited"] = "yes"
				return nil
			}}
		},
	}
}

func TestContainerGolden(t *testing.T) {
	for name, change := range goldenCases() {
		t.Run(name, func(t *testing.T) {
			in := request()
			change(&in)
			s, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			checkGolden(t, name, s)
		})
	}
}

// checkGolden compares s with its file, without the default filter's system calls. They come from
// the seccomp library and differ by architecture.
func checkGolden(t *testing.T, name string, s *specs.Spec) {
	t.Helper()
	if err := testspec.Check(s); err != nil {
		t.Errorf("not a valid specification: %v", err)
	}
	if s.Linux.Seccomp != nil && len(s.Linux.Seccomp.Architectures) > 0 {
		s.Linux.Seccomp.Architectures, s.Linux.Seccomp.Syscalls = nil, nil
	}
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("spec differs from %s (-want +got; go test -update writes it):\n%s", file, diff)
	}
}

// TestContainerIsPure holds that the input is neither changed nor shared: two calls give the same
// bytes, and changing one result leaves the other unchanged.
func TestContainerIsPure(t *testing.T) {
	for name, change := range goldenCases() {
		in := request()
		change(&in)
		first, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(first)
		second, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		second.Mounts = append(second.Mounts[:1], second.Mounts[2:]...)
		for i := range second.Linux.Devices {
			second.Linux.Devices[i].Path = "/changed"
		}
		third, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		if after, _ := json.Marshal(third); string(before) != string(after) {
			t.Errorf("%s: a later call gives\n%s\nnot\n%s", name, after, before)
		}
	}
}
