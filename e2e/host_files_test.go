package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// The files that the node provides in a container have a size limit for the whole pod: they are on
// the state directory's file system, which the host needs.
func TestPodFilesCannotFillTheStateDirectory(t *testing.T) {
	f := start(t)
	for name, p := range map[string]pod{"pod": f.runPod(f.podConfig()), "pod with a user namespace": f.userPod()} {
		config := f.containerConfig(busyboxImage, "sh", "-c", `
			for f in hostname hosts resolv.conf; do dd if=/dev/zero of=/etc/$f bs=1M count=64 2>/dev/null && echo "$f took all"; done
			du -ck /etc/hostname /etc/hosts /etc/resolv.conf | tail -n 1 | cut -f 1`)
		if p.config.Linux.SecurityContext != nil {
			config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = p.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
		}
		used := f.stateUsed()
		var kib int
		if out := f.output(p, config); !scan(out, &kib) || kib == 0 || kib > 2<<10 {
			t.Errorf("%s: the pod's three files grew to (KiB): %q", name, out)
		}
		if grown := f.stateUsed() - used; grown > 1<<20 {
			t.Errorf("%s: the state directory's file system has grown by %d bytes", name, grown)
		}
	}
}

func scan(text string, n *int) bool {
	_, err := fmt.Sscanf(text, "%d\n", n)
	return err == nil
}

// stateUsed returns how many bytes are used on the state directory's file system.
func (f *fixture) stateUsed() int64 {
	f.t.Helper()
	var root unix.Stat_t
	f.no(unix.Stat(f.State, &root))
	var used int64
	for _, path := range below(f.t, f.State) {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Dev == root.Dev {
			used += st.Blocks * 512
		}
	}
	return used
}

// The files under /etc keep their content when the daemon restarts, also in containers created
// later.
func TestPodFilesSurviveRestart(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	first := f.containerConfig(busyboxImage, "sh", "-c", "echo 10.9.8.7 added >>/etc/hosts; cat /etc/hostname /etc/hosts")
	before := f.output(p, first)
	f.no(f.Kill())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	second := f.containerConfig(busyboxImage, "cat", "/etc/hostname", "/etc/hosts")
	if after := f.output(p, second); after != before || !strings.Contains(after, "10.9.8.7 added") {
		t.Errorf("the files were\n%s\nbefore the restart and are\n%s", before, after)
	}
}

// A pod that mounts its log directory cannot make the node write its log to, or read it from,
// another file.
func TestLogIsNotWrittenThroughLinks(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	f.no(os.MkdirAll(config.LogDirectory, 0o755))
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	f.no(os.WriteFile(victim, []byte("host\n"), 0o600))
	p := f.runPod(config)
	writer := f.containerConfig(busyboxImage, "sh", "-ec", `cd /logs; ln -s "$0" file.log; ln -s "${0%/*}" dir; mkfifo pipe.log`, victim)
	writer.Mounts = []*runtimeapi.Mount{{ContainerPath: "/logs", HostPath: config.LogDirectory}}
	f.output(p, writer)
	for _, path := range []string{"file.log", "dir/victim", "dir/new.log", "pipe.log"} {
		c := f.containerConfig(busyboxImage, "echo", "from the container")
		c.LogPath = path
		id, err := f.Runtime.CreateContainer(f.ctx, p.id, c, p.config)
		if err == nil {
			err = f.Runtime.StartContainer(f.ctx, id)
		}
		if err == nil {
			t.Errorf("StartContainer succeeds with the log %s", path)
		}
	}
	// A log that the pod has replaced by a link is not reopened.
	c := f.containerConfig(busyboxImage, "sleep", "600")
	id := f.start(p, c)
	path := filepath.Join(config.LogDirectory, c.LogPath)
	f.no(os.Rename(path, path+".1"))
	f.no(os.Symlink(victim, path))
	if err := f.Runtime.ReopenContainerLog(f.ctx, id); err == nil {
		t.Error("ReopenContainerLog opened a link")
	}
	if got, err := os.ReadFile(victim); string(got) != "host\n" || err != nil {
		t.Errorf("the file outside is %q, %v", got, err)
	}
	if found, _ := os.ReadDir(outside); len(found) != 1 {
		t.Errorf("outside are %v", found)
	}
}

// The files and directories of a pod have the modes that images and users expect, whatever the
// daemon's umask is.
func TestUmaskDoesNotReachContainers(t *testing.T) {
	for _, umask := range []string{"077", "027"} {
		t.Run(umask, func(t *testing.T) {
			f := startOn(t, func(o *node.Options) {
				o.Enter = []string{"/bin/sh", "-c", "umask " + umask + `; exec "$@"`, "sh"}
			})
			p := f.runPod(f.podConfig())
			host := filepath.Join(t.TempDir(), "absent", "dir")
			config := f.containerConfig(busyboxImage, "sh", "-c",
				`umask; cat /etc/resolv.conf /etc/hosts /etc/hostname >/dev/null && stat -c '%n %a' /etc/resolv.conf /etc/hosts /etc/hostname /host /mnt/deep /mnt/deep/er /work /work/dir | sed 's/ 1755$/ 755/'`) // crun makes mount points sticky
			config.WorkingDir = "/work/dir"
			config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/host", HostPath: host}, {ContainerPath: "/mnt/deep/er", HostPath: t.TempDir()}}
			want := "0022\n/etc/resolv.conf 644\n/etc/hosts 644\n/etc/hostname 644\n/host 755\n/mnt/deep 755\n/mnt/deep/er 755\n/work 755\n/work/dir 755\n"
			if got := f.output(p, config); got != want {
				t.Errorf("container printed\n%s\nwant\n%s", got, want)
			}
			f.wantMode(host, 0o755)
			f.wantMode(filepath.Join(p.config.LogDirectory, config.LogPath), 0o640)
			for name, mode := range map[string]os.FileMode{"mica.sock": 0o660, "admin.sock": 0o600, "keeper": 0o700, "pods": 0o700, "containers": 0o711, "": 0o711} {
				f.wantMode(filepath.Join(f.State, name), mode)
			}
		})
	}
}

// Process 1 of a shared PID namespace does not run from the program's file on the host, because
// containers of the pod can open /proc/1/exe.
func TestInitRunsFromSealedCopy(t *testing.T) {
	f := start(t)
	keeper, err := f.KeeperPid()
	f.no(err)
	for name, p := range map[string]pod{"pod": f.runPod(f.podConfig()), "pod with a user namespace": f.userPod()} {
		config := f.containerConfig(busyboxImage, "sleep", "600")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		if users := p.config.Linux.SecurityContext; users != nil {
			config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users.NamespaceOptions.UsernsOptions
		}
		f.start(p, config)
		inits := 0
		for _, pid := range childrenOf(t, keeper) {
			if comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm")); string(comm) != "mica-init\n" {
				continue
			}
			inits++
			if exe, err := os.Readlink(filepath.Join("/proc", pid, "exe")); err != nil || !strings.HasPrefix(exe, "/memfd:") {
				t.Errorf("%s: process 1 runs from %q, %v", name, exe, err)
			}
		}
		if inits == 0 {
			t.Errorf("%s: process 1 was not found", name)
		}
	}
}

func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		children = append(children, strings.Fields(string(text))...)
	}
	return children
}
