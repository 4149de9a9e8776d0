package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	hostRoot = 1 << 20 // size of the ID mappings in these tests
	idCount  = 1 << 16
)

// userNamespace returns the options of a pod with a user namespace.
func userNamespace() *runtimeapi.UserNamespace {
	ids := func() []*runtimeapi.IDMapping { return []*runtimeapi.IDMapping{{HostId: hostRoot, Length: idCount}} }
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids(), Gids: ids()}
}

// userPod runs a pod with a user namespace.
func (f *fixture) userPod() pod {
	f.t.Helper()
	status, err := f.Runtime.Status(f.ctx, false)
	f.no(err)
	for _, h := range status.RuntimeHandlers {
		if h.Name == "" && !h.Features.UserNamespaces {
			f.t.Skip("the node reports that user namespaces are not supported")
		}
	}
	config := f.podConfig()
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: userNamespace()}}
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
	return f.runPod(config)
}

// userContainer returns the config of a container in such a pod.
func (f *fixture) userContainer(pid runtimeapi.NamespaceMode, image string, command ...string) *runtimeapi.ContainerConfig {
	config := f.containerConfig(image, command...)
	config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: pid, UsernsOptions: userNamespace()}
	return config
}

// A container's root has no privileges on the node, and owns everything of the pod: files,
// namespaces and pipes.
func TestUserNamespace(t *testing.T) {
	f := start(t)
	p := f.userPod()
	for _, pid := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD} {
		config := f.userContainer(pid, busyboxImage, "sh", "-ec", `
			cat /proc/self/uid_map /proc/self/gid_map
			stat -c '%u:%g' / /bin/busybox /etc/hosts /dev/shm
			echo line >/dev/stdout
			echo 10.0.0.1 other >>/etc/hosts
			touch /dev/shm/f /new; chown 1000:1000 /new; stat -c '%u:%g' /new
			cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced
			hostname inside && hostname
			echo masked $(grep -c ' /proc/' /proc/self/mountinfo) # unmasked is what no paths mean here
			ip link add dummy type bridge && echo bridge
			sleep 600`)
		config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN"}}
		id := f.start(p, config)
		mapping := fmt.Sprintf("0 %d %d", hostRoot, idCount)
		want := strings.Join([]string{mapping, mapping, "0:0", "0:0", "0:0", "0:0", "line", "1000:1000", "80", "1", "inside", "masked 0", "bridge"}, "\n")
		f.eventually("output of the container", func() bool { return strings.Contains(text(f.log(p, config)), "bridge") })
		var got []string
		for line := range strings.Lines(text(f.log(p, config))) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("pid mode %v: container printed\n%s\nwant\n%s", pid, strings.Join(got, "\n"), want)
		}
		f.exec(id, "ip", "link", "del", "dummy")
		if got := f.exec(id, "sh", "-c", "id -u; echo again >/dev/stdout; stat -c %u /new"); got != "0\nagain\n1000\n" {
			t.Errorf("pid mode %v: exec printed %q", pid, got)
		}
		var owners []uint32
		f.eventually("the container's last process runs", func() bool {
			owners = ownersOfSleeps(t)
			return len(owners) > 0
		})
		for _, owner := range owners {
			if owner < hostRoot || owner >= hostRoot+idCount {
				t.Errorf("a process of the container runs as user %d of the node", owner)
			}
		}
	}
}

// ownersOfSleeps returns the users of all processes "sleep 600" in other user namespaces.
func ownersOfSleeps(t *testing.T) []uint32 {
	t.Helper()
	mine, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var owners []uint32
	for _, line := range lines {
		data, _ := os.ReadFile(line)
		dir := filepath.Dir(line)
		var st unix.Stat_t
		if ns, err := os.Readlink(dir + "/ns/user"); string(data) == "sleep\x00600\x00" && err == nil && ns != mine && unix.Stat(dir, &st) == nil {
			owners = append(owners, st.Uid)
		}
	}
	return owners
}

// Volumes with ID mappings show a container the owners on disk, and new files keep them. Volumes
// without mappings show the node's view.
func TestUserNamespaceVolumes(t *testing.T) {
	f := start(t)
	p := f.userPod()
	dir := t.TempDir()
	f.no(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	// Not on a tmpfs, which kernels before Linux 6.3 cannot ID-map.
	f.no(unix.Mount(t.TempDir(), filepath.Join(dir, "sub"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { f.no(unix.Unmount(filepath.Join(dir, "sub"), 0)) })
	for _, name := range []string{"file", "sub/file"} {
		f.no(os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		f.no(os.Chown(filepath.Join(dir, name), 5, 6))
	}
	f.pull(toolsImage)
	other := []*runtimeapi.IDMapping{{HostId: hostRoot + 100, Length: 100}}
	config := f.userContainer(runtimeapi.NamespaceMode_CONTAINER, busyboxImage, "sh", "-ec", `
		stat -c '%n %u:%g' /mapped/file /mapped/sub/file /one /plain/file /plain/sub/file /other/file /image/bin/lines
		touch /mapped/new /mapped/sub/new; chown 7:8 /mapped/new; ! touch /image/new 2>/dev/null; ! touch /ro/new 2>/dev/null`)
	ids := userNamespace().Uids
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/mapped", HostPath: dir, UidMappings: ids, GidMappings: ids, Propagation: runtimeapi.MountPropagation_PROPAGATION_PRIVATE},
		{ContainerPath: "/ro", HostPath: dir, UidMappings: ids, GidMappings: ids, Readonly: true},
		{ContainerPath: "/one", HostPath: filepath.Join(dir, "file"), UidMappings: ids, GidMappings: ids},
		{ContainerPath: "/plain", HostPath: dir},
		{ContainerPath: "/other", HostPath: dir, UidMappings: other, GidMappings: other},
		{ContainerPath: "/image", Readonly: true, Image: &runtimeapi.ImageSpec{Image: toolsImage}},
	}
	want := "/mapped/file 5:6\n/mapped/sub/file 5:6\n/one 5:6\n/plain/file 65534:65534\n/plain/sub/file 65534:65534\n/other/file 105:106\n/image/bin/lines 0:0\n"
	if got := f.output(p, config); got != want {
		t.Errorf("container printed\n%s\nwant\n%s", got, want)
	}
	for name, owner := range map[string][2]uint32{"new": {7, 8}, "sub/new": {0, 0}, "file": {5, 6}} {
		var st unix.Stat_t
		f.no(unix.Stat(filepath.Join(dir, name), &st))
		if st.Uid != owner[0] || st.Gid != owner[1] {
			t.Errorf("%s belongs to %d:%d on the node, want %v", name, st.Uid, st.Gid, owner)
		}
	}
	f.no(f.RemovePod(f.ctx, p.id))
	if _, err := os.Stat(filepath.Join(dir, "sub", "new")); err != nil {
		t.Errorf("the volume after the pod's removal: %v", err)
	}
}

// A pod with a user namespace survives a restart of the daemon and then runs new containers.
func TestUserNamespaceSurvivesRestart(t *testing.T) {
	f := start(t)
	p := f.userPod()
	server := f.start(p, f.userContainer(runtimeapi.NamespaceMode_CONTAINER, nginxImage))
	answers := func() bool {
		_, err := get(f.ctx, "http://"+f.ip(p)+"/")
		return err == nil
	}
	f.eventually("nginx answers", answers)
	f.no(f.Kill())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	f.eventually("nginx answers after the restart", answers)
	if got := f.exec(server, "id", "-u"); got != "0\n" {
		t.Errorf("exec printed %q", got)
	}
	next := f.userContainer(runtimeapi.NamespaceMode_POD, busyboxImage, "cat", "/proc/self/uid_map")
	if got := strings.Fields(f.output(p, next)); len(got) != 3 || got[1] != fmt.Sprint(hostRoot) {
		t.Errorf("container after the restart has the mapping %v", got)
	}
}
