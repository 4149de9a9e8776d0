package e2e

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type security = runtimeapi.LinuxContainerSecurityContext

// TestSecurityContext runs one script per setting. Its output shows whether the setting applies in
// the container.
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
		"all capabilities but one": {
			security: &security{Capabilities: capabilities([]string{"ALL"}, []string{"CHOWN"})},
			script:   "touch /x && ! chown 1 /x 2>/dev/null && hostname other && echo yes", want: "yes\n",
		},
		"ambient capability": {
			security: &security{RunAsUser: number(1234), Capabilities: &runtimeapi.Capability{
				DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_ADMIN"},
			}},
			// Even a program that is not root and has no file capabilities keeps it.
			script: "id -u; sh -c 'grep -E \"Cap(Eff|Amb|Inh)\" /proc/self/status'; ip link add dummy type bridge && ip link del dummy && echo works",
			want:   "1234\nCapInh:\t0000000000001000\nCapEff:\t0000000000001000\nCapAmb:\t0000000000001000\nworks\n",
		},
		"added capability of a user": {
			security: &security{RunAsUser: number(1234), Capabilities: capabilities([]string{"NET_ADMIN"}, []string{"ALL"})},
			script:   "grep -E 'Cap(Eff|Amb)' /proc/self/status", want: "CapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n",
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

// Mounts have the options that the kubelet requests, and no others.
func TestMountOptions(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	dir := t.TempDir()
	f.no(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	f.no(unix.Mount("tmpfs", filepath.Join(dir, "sub"), "tmpfs", 0, ""))
	t.Cleanup(func() { f.no(unix.Unmount(filepath.Join(dir, "sub"), 0)) })
	config := f.containerConfig(busyboxImage, "sh", "-c", `
		for m in /plain /one /all; do
			cp /bin/busybox $m/true; $m/true && echo "$m runs"
			cp /bin/busybox $m/sub/true; $m/sub/true && echo "$m/sub runs"
		done 2>/dev/null
		grep ' /one ' /proc/self/mountinfo | grep -o -E 'nosuid|nodev|noexec|noatime'`)
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/plain", HostPath: dir},
		{ContainerPath: "/one", HostPath: dir, MountOptions: []string{"noexec", "nosuid", "nodev", "noatime"}},
		{ContainerPath: "/all", HostPath: dir, MountOptions: []string{"rnoexec"}},
	}
	want := "/plain runs\n/plain/sub runs\n/one/sub runs\nnosuid\nnodev\nnoexec\nnoatime\n"
	if got := f.output(p, config); got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	list, err := f.Runtime.ListContainers(f.ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.id})
	f.no(err)
	if got := f.status(list[0].Id).Mounts; len(got) != 3 || !slices.Equal(got[1].MountOptions, config.Mounts[1].MountOptions) {
		t.Errorf("mounts in the status are %v", got)
	}
	config = f.containerConfig(busyboxImage, "true")
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: dir, MountOptions: []string{"rw"}}}
	if _, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an option with its own field: %v, want InvalidArgument", err)
	}
}

// Image volumes contain the whole image, or a directory or a file of it. Links in an image never
// lead outside of it.
func TestImageVolumes(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	volume := f.pull(toolsImage)
	image := func(target, sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: target, Image: &runtimeapi.ImageSpec{Image: toolsImage}, ImageSubPath: sub, Readonly: true}
	}
	config := f.containerConfig(busyboxImage, "sh", "-c",
		"cat /whole/etc/mica-image /dir/mica-image /file /link; touch /whole/x /dir/x 2>&1; echo x 2>/dev/null >/file || echo refused; ls -d /whole/bin/lines")
	config.Mounts = []*runtimeapi.Mount{image("/whole", ""), image("/dir", "etc"), image("/file", "etc/mica-image"), image("/link", "etc/motd")}
	marker := f.output(p, f.containerConfig(toolsImage, "cat", "/etc/mica-image"))
	want := strings.Repeat(marker, 4) + "touch: /whole/x: Read-only file system\ntouch: /dir/x: Read-only file system\nrefused\n/whole/bin/lines\n"
	id := f.start(p, config)
	ended := f.await(id)
	if got := text(f.log(p, config)); got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	for _, m := range ended.Mounts {
		if m.GetImage().GetImageRef() != volume {
			t.Errorf("mount %s names image %q, want %s", m.ContainerPath, m.GetImage().GetImageRef(), volume)
		}
	}
	for sub, code := range map[string]codes.Code{"no/such": codes.Unknown, "../etc": codes.InvalidArgument} {
		bad := f.containerConfig(busyboxImage, "true")
		bad.Mounts = []*runtimeapi.Mount{image("/bad", sub)}
		_, err := f.Runtime.CreateContainer(f.ctx, p.id, bad, p.config)
		if status.Code(err) != code || !strings.Contains(err.Error(), sub) {
			t.Errorf("sub path %q: %v, want %v", sub, err, code)
		}
	}
	// The volume remains mounted when the image is removed.
	holder := f.containerConfig(busyboxImage, "sh", "-c", "while [ ! -e /dev/shm/go ]; do sleep 0.05; done; cat /whole/etc/mica-image")
	holder.Mounts = config.Mounts[:1]
	id = f.start(p, holder)
	f.no(f.Images.RemoveImage(f.ctx, &runtimeapi.ImageSpec{Image: toolsImage}))
	f.exec(id, "touch", "/dev/shm/go")
	if f.await(id); text(f.log(p, holder)) != marker {
		t.Errorf("after the image was removed its volume has %q, want %q", text(f.log(p, holder)), marker)
	}
}

// A device has the requested path and permissions.
func TestDevices(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	for permissions, want := range map[string]string{"r": "readable\n", "w": "writable\n", "rwm": "readable\nwritable\n", "": "readable\nwritable\n"} {
		config := f.containerConfig(busyboxImage, "sh", "-c",
			"(: </dev/own/log) 2>/dev/null && echo readable; (: >/dev/own/log) 2>/dev/null && echo writable; ls /dev/kmsg 2>/dev/null")
		config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYSLOG"}} // a /dev/kmsg may need this to be read
		config.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/own/log", Permissions: permissions}}
		if got := f.output(p, config); got != want {
			t.Errorf("device with the permissions %q is %q, want %q", permissions, got, want)
		}
	}
}

// Symbolic links in a root filesystem must not redirect the runtime's own mounts.
func TestMountThroughSymlinkStaysInside(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	dir := t.TempDir()
	// /etc/motd of the image is a symbolic link to mica-image.
	config := f.containerConfig(toolsImage, "sh", "-c", "cat /etc/mica-image")
	f.no(os.WriteFile(filepath.Join(dir, "motd"), []byte("mounted\n"), 0o644))
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/motd", HostPath: filepath.Join(dir, "motd")}}
	if got := f.output(p, config); got != "mounted\n" {
		t.Errorf("the link's target contains %q, want the mounted file", got)
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
