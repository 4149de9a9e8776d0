package lookup

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testcgroup"
	"github.com/micarun/mica/runtimeservice/spec"
)

// runtimes are the OCI runtimes that TestRun uses. crun refuses hybrid cgroups, so the unified
// hierarchy is hidden from it.
func runtimes(t *testing.T) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	var found []string
	for _, name := range []string{"runc", "crun"} {
		if _, err := exec.LookPath(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		t.Skip("no OCI runtime here")
	}
	return found
}

// busyboxRoot makes a root file system with busybox and a few users.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	root := rootfs(t, map[string]string{"etc/passwd": passwd, "etc/group": group, "proc/.keep": "", "sys/.keep": "", "dev/.keep": ""})
	text, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(root, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// run runs the specification to its end and returns its output.
func run(t *testing.T, runtime string, s *specs.Spec) (string, error) {
	t.Helper()
	dir := t.TempDir()
	id := "mica-spectest-" + strconv.FormatUint(rand.Uint64(), 36)
	s.Linux.CgroupsPath = "/" + id
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{runtime, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, id}
	if runtime == "crun" {
		args = testcgroup.Command(args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// onHost returns a request for this node and root.
func onHost(t *testing.T, root, script string) spec.ContainerInput {
	t.Helper()
	h, err := DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	return spec.ContainerInput{
		ID: "c0ffee", PodID: "badcab1e",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:1234"},
			Command:  []string{"/bin/sh", "-c", "export PATH=/b:/bin; busybox() { /bin/busybox \"$@\"; }; " + script},
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
		},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod1", Namespace: "default", Uid: "u-1"},
			Hostname: "pod1",
			Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
		},
		Host: h, RootfsPath: root, Namespaces: spec.Namespaces{User: spec.HostNamespace},
	}
}

func security(in *spec.ContainerInput) *runtimeapi.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

// TestRun holds that real OCI runtimes accept the specifications, and that these have the intended
// effect.
func TestRun(t *testing.T) {
	root := busyboxRoot(t)
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	kept := t.TempDir()
	for _, c := range []struct {
		name, script string
		change       func(*spec.ContainerInput)
		want         []string
	}{
		{
			"minimal", `echo $HOSTNAME; busybox hostname; busybox id -u; busybox grep -c . /proc/self/mountinfo >/dev/null && echo mounts; (echo x >/proc/sys/kernel/domainname) 2>/dev/null || echo guarded; busybox wc -c </proc/interrupts`,
			func(*spec.ContainerInput) {},
			[]string{"pod1", "pod1", "0", "mounts", "guarded", "0"},
		},
		{
			"confined", `busybox id -u; busybox id -G; busybox grep -E "^(CapEff|CapAmb|NoNewPrivs|Seccomp):" /proc/self/status; busybox touch /x 2>/dev/null || echo readonly; busybox pwd`,
			func(in *spec.ContainerInput) {
				sc := security(in)
				sc.RunAsUsername, sc.SupplementalGroups = "app", []int64{777}
				sc.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
				sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
				sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
				in.Config.WorkingDir = "/etc"
			},
			[]string{"1000", "100 29 44 777", "CapEff:\t0000000000000400", "CapAmb:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2", "readonly", "/etc"},
		},
		{
			"privileged", `busybox grep Seccomp: /proc/self/status; [ -w /sys/fs ] && echo writable; [ -c /dev/fuse ] && echo devices; busybox mount -t tmpfs none /etc && echo mounted`,
			func(in *spec.ContainerInput) {
				security(in).Privileged, in.Pod.Linux.SecurityContext.Privileged = true, true
			},
			[]string{"Seccomp:\t0", "writable", "devices", "mounted"},
		},
		{
			"mounts", `busybox cat /v/deep/file; echo; busybox touch /v/ro/x 2>/dev/null || echo "read-only"; busybox touch /v/rro/x 2>/dev/null || echo "all read-only"; busybox touch /kept/x && echo writable; busybox cp /bin/busybox /kept/b && /kept/b true 2>/dev/null || echo noexec; busybox cat /etc/resolv.conf/file`,
			func(in *spec.ContainerInput) {
				in.Config.Mounts = []*runtimeapi.Mount{
					{ContainerPath: "/v/deep", HostPath: shared},
					{ContainerPath: "/v", HostPath: t.TempDir()},
					{ContainerPath: "/v/ro", HostPath: shared, Readonly: true},
					{ContainerPath: "/v/rro", HostPath: shared, Readonly: true, RecursiveReadOnly: true},
					{ContainerPath: "/kept", HostPath: kept, MountOptions: []string{"noexec", "nosuid"}},
				}
				in.Features = &features.Features{MountOptions: []string{"rro", "noexec", "nosuid"}}
				in.Mounts = []spec.Mount{{Source: shared, Destination: "/etc/resolv.conf", ReadOnly: true}}
			},
			[]string{"hello", "read-only", "all read-only", "writable", "noexec", "hello"},
		},
		{
			"resources", `busybox cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.shares; busybox cat /proc/self/oom_score_adj`,
			func(in *spec.ContainerInput) {
				in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
					MemoryLimitInBytes: 64 << 20, CpuShares: 256, CpuQuota: 20000, CpuPeriod: 100000, OomScoreAdj: 321,
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}},
				}
			},
			[]string{"67108864", "256", "321"},
		},
		{
			"host namespaces and clamps", `[ -d /proc/` + strconv.Itoa(os.Getpid()) + ` ] && echo seen; ulimit -n; busybox cat /proc/self/oom_score_adj`,
			func(in *spec.ContainerInput) {
				in.Namespaces = spec.Namespaces{Net: spec.HostNamespace, IPC: spec.HostNamespace, UTS: spec.HostNamespace, PID: spec.HostNamespace, User: spec.HostNamespace}
				in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -998}
				in.Host.RaiseRlimits = false
				in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
			},
			nil,
		},
		{
			"devices", `[ -c /dev/mynull ] && echo x >/dev/mynull && echo written; [ -e /dev/kmsg ] || echo none`,
			func(in *spec.ContainerInput) {
				in.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/full", ContainerPath: "/dev/unused"}, {HostPath: "/dev/null", ContainerPath: "/dev/mynull"}}
			},
			[]string{"written", "none"},
		},
	} {
		for _, runtime := range runtimes(t) {
			t.Run(c.name+"/"+runtime, func(t *testing.T) {
				in := onHost(t, root, c.script)
				if in.Host.CgroupV2 && c.name == "resources" {
					t.Skip("reads the files of cgroup v1")
				}
				c.change(&in)
				prepare(t, &in)
				s, err := spec.Container(in)
				if err != nil {
					t.Fatal(err)
				}
				out, err := run(t, runtime, s)
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				want := c.want
				if want == nil {
					want = []string{"seen", strconv.FormatUint(heldNoFile(in.Host), 10), strconv.Itoa(max(-998, in.Host.OOMScoreAdjMin))}
				}
				if got := strings.Split(strings.TrimSpace(out), "\n"); !slices.Equal(got, want) {
					t.Errorf("output\n%q, want\n%q", got, want)
				}
			})
		}
	}
}

// prepare does the look-ups that a caller of Container does.
func prepare(t *testing.T, in *spec.ContainerInput) {
	t.Helper()
	var err error
	if in.User, err = ResolveUser(t.Context(), in.RootfsPath, security(in), ""); err != nil {
		t.Fatal(err)
	}
	if in.MountSources, err = PrepareMounts(in.Config.Mounts); err != nil {
		t.Fatal(err)
	}
	if in.Devices, in.DeviceRules, err = ResolveDevices(in.Config.Devices); err != nil {
		t.Fatal(err)
	}
}

func heldNoFile(h spec.Host) uint64 {
	for _, l := range h.Rlimits {
		if l.Type == "RLIMIT_NOFILE" {
			return l.Hard
		}
	}
	return 0
}
