package e2e

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type security = runtimeapi.LinuxContainerSecurityContext

// TestSecurityContext runs one script per setting; what it prints shows whether
// the setting holds inside the container.
func TestSecurityContext(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	number := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	capabilities := func(add, drop []string) *runtimeapi.Capability {
		return &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
	}
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind}
	}
	tests := map[string]struct {
		image    string
		security *security
		script   string
		want     string
	}{
		"user and group": {
			security: &security{RunAsUser: number(1234), RunAsGroup: number(4321), SupplementalGroups: []int64{77, 88}},
			script:   "id -u; id -g; id -G", want: "1234\n4321\n4321 77 88\n",
		},
		"user by name": {security: &security{RunAsUsername: "www-data"}, script: "id -u; id -g", want: "33\n33\n"},
		"groups of the image": {
			image: toolsImage, security: &security{RunAsUser: number(1000), SupplementalGroups: []int64{77}},
			script: "id -G", want: "1000 77 50000\n",
		},
		"groups strictly": {
			image:    toolsImage,
			security: &security{RunAsUser: number(1000), SupplementalGroups: []int64{77}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict},
			script:   "id -G", want: "1000 77\n",
		},
		"default capabilities": {security: &security{}, script: "grep CapEff /proc/self/status", want: "CapEff:\t00000000a80425fb\n"},
		"no capabilities": {
			security: &security{Capabilities: capabilities(nil, []string{"ALL"})},
			script:   "grep CapEff /proc/self/status", want: "CapEff:\t0000000000000000\n",
		},
		"one capability": {
			security: &security{Capabilities: capabilities([]string{"NET_ADMIN"}, []string{"ALL"})},
			script:   "grep CapEff /proc/self/status", want: "CapEff:\t0000000000001000\n",
		},
		"read-only root": {security: &security{ReadonlyRootfs: true}, script: "touch /x 2>&1", want: "touch: /x: Read-only file system\n"},
		"masked path": {
			security: &security{MaskedPaths: []string{"/etc/passwd", "/proc/cpuinfo"}},
			script:   "wc -c < /etc/passwd; wc -c < /proc/cpuinfo", want: "0\n0\n",
		},
		"read-only path": {
			security: &security{ReadonlyPaths: []string{"/proc/sys"}},
			script:   "echo 1 2>/dev/null > /proc/sys/vm/overcommit_memory || echo refused", want: "refused\n",
		},
		"seccomp by default": {
			security: &security{Seccomp: seccomp(runtimeapi.SecurityProfile_RuntimeDefault)},
			script:   "grep -w Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo refused", want: "Seccomp:\t2\nrefused\n",
		},
		"no seccomp": {
			security: &security{Seccomp: seccomp(runtimeapi.SecurityProfile_Unconfined)},
			script:   "grep -w Seccomp: /proc/self/status", want: "Seccomp:\t0\n",
		},
		"setuid works": {image: toolsImage, security: &security{}, script: "/bin/euid", want: "Effective uid: 0\n"},
		"no new privileges": {
			image: toolsImage, security: &security{NoNewPrivs: true}, script: "/bin/euid", want: "Effective uid: 1000\n",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.image == "" {
				test.image = busyboxImage
			}
			config := f.containerConfig(test.image, "sh", "-c", test.script)
			test.security.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
			config.Linux.SecurityContext = test.security
			if got := f.output(p, config); got != test.want {
				t.Errorf("printed %q, want %q", got, test.want)
			}
		})
	}
}

func TestPrivileged(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}
	p := f.runPod(config)
	script := "grep CapEff /proc/self/status; mkdir /m && mount -t tmpfs none /m && echo mounted; test -w /proc/sys/kernel/hostname && echo writable; test -c /dev/loop-control && echo devices"
	container := f.containerConfig(busyboxImage, "sh", "-c", script)
	container.Linux.SecurityContext.Privileged = true
	status, err := os.ReadFile("/proc/self/status")
	f.no(err)
	_, bounding, _ := strings.Cut(string(status), "CapBnd:\t")
	bounding, _, _ = strings.Cut(bounding, "\n")
	want := "CapEff:\t" + bounding + "\nmounted\nwritable\n"
	if _, err := os.Stat("/dev/loop-control"); err == nil {
		want += "devices\n"
	}
	if got := f.output(p, container); got != want {
		t.Errorf("privileged container printed %q, want %q", got, want)
	}
}

func TestHostNamespaces(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	options := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
	}
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}
	p := f.runPod(config)
	container := f.containerConfig(busyboxImage, "sh", "-c", "for n in net pid ipc; do readlink /proc/self/ns/$n; done")
	container.Linux.SecurityContext.NamespaceOptions = options
	want := namespaceOf(t, "net") + "\n" + namespaceOf(t, "pid") + "\n" + namespaceOf(t, "ipc") + "\n"
	if got := f.output(p, container); got != want {
		t.Errorf("namespaces are %q, want the node's %q", got, want)
	}
}

func TestMounts(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	dir := t.TempDir()
	f.no(os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644))
	missing := filepath.Join(dir, "missing", "directory")
	config := f.containerConfig(busyboxImage, "sh", "-c",
		"cat /data/file; echo back > /data/answer; touch /fixed/x 2>&1; ls -d /made; ls /one")
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: dir},
		{ContainerPath: "/fixed", HostPath: dir, Readonly: true},
		{ContainerPath: "/made", HostPath: missing},
		{ContainerPath: "/one", HostPath: filepath.Join(dir, "file")},
	}
	want := "from the host\ntouch: /fixed/x: Read-only file system\n/made\n/one\n"
	if got := f.output(p, config); got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if answer, err := os.ReadFile(filepath.Join(dir, "answer")); err != nil || string(answer) != "back\n" {
		t.Errorf("the host reads %q, %v", answer, err)
	}
	if _, err := os.Stat(missing); err != nil {
		t.Errorf("host path that was missing: %v, want a directory", err)
	}
}

// A rootfs whose paths lead out through symbolic links must not lead the
// runtime's own mounts out.
func TestMountThroughSymlinkStaysInside(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	dir := t.TempDir()
	// /etc/motd of the image is a symbolic link to mica-image.
	config := f.containerConfig(toolsImage, "sh", "-c", "cat /etc/mica-image")
	f.no(os.WriteFile(filepath.Join(dir, "motd"), []byte("mounted\n"), 0o644))
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/motd", HostPath: filepath.Join(dir, "motd")}}
	if got := f.output(p, config); got != "mounted\n" {
		t.Errorf("target of the link has %q, want the mounted file", got)
	}
}

func namespaceOf(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func netipOf(ip net.IP) netip.Addr {
	address, _ := netip.AddrFromSlice(ip)
	return address.Unmap()
}
