package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
)

// nobody is an unprivileged user of the host without supplementary groups.
const nobody = 65534

// reachable returns the paths that a process of the host with this user and group, and no other
// groups, can stat. That needs search permission on every directory above the path. Directories
// that it can also list end with a slash.
func reachable(t *testing.T, id uint32, paths []string) []string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `while IFS= read -r p; do
		if [ -d "$p" ] && [ -r "$p" ]; then printf '%s/\n' "$p"; elif [ -e "$p" ] || [ -L "$p" ]; then printf '%s\n' "$p"; fi
	done`)
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("look at paths as user %d: %v: %s", id, err, stderr.String())
	}
	return strings.Fields(string(out))
}

// below returns the directories and every path below them.
func below(t *testing.T, dirs ...string) []string {
	t.Helper()
	var paths []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && p != dir {
				return nil // removed meanwhile, for example with the mount of an ended container
			}
			paths = append(paths, p)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// refuse fails the test for every path that the user can reach and that is not in allowed.
func (f *fixture) refuse(who string, id uint32, paths []string, allowed ...string) {
	f.t.Helper()
	ok := map[string]bool{}
	for _, p := range allowed {
		ok[p] = true
	}
	found := 0
	for _, p := range reachable(f.t, id, paths) {
		if ok[p] {
			continue
		}
		if found++; found <= 20 {
			f.t.Errorf("%s reaches %s", who, p)
		}
	}
	if found > 20 {
		f.t.Errorf("%s reaches %d paths more", who, found-20)
	}
}

// hostFilesPod runs a pod with every kind of file in the node's directories: an image volume, image
// VOLUMEs, shared memory, an exec and a log. ids, if not 0, is the host user that is root in the
// pod's user namespace.
func (f *fixture) hostFilesPod(ids uint32) (pod, string) {
	f.t.Helper()
	f.pull(toolsImage)
	mount := &runtimeapi.Mount{ContainerPath: "/image", Readonly: true, Image: &runtimeapi.ImageSpec{Image: toolsImage}}
	config, container := f.podConfig(), f.containerConfig(busyboxImage, "sh", "-c", "echo secret >/dev/shm/f; sleep 600")
	if ids != 0 {
		maps := []*runtimeapi.IDMapping{{HostId: ids, Length: idCount}}
		users := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: maps, Gids: maps}
		config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: users}}
		container.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	}
	container.Mounts = append(container.Mounts, mount)
	p := f.runPod(config)
	id := f.start(p, container)
	f.exec(id, "touch", "/written")
	return p, id
}

// Other users of the host cannot access setuid files of image volumes, shared memory, writable
// layers, volumes, records, namespaces or sockets. They can only find out whether an ID that they
// already know exists.
func TestHostUsersReachNothing(t *testing.T) {
	f := start(t)
	_, plain := f.hostFilesPod(0)
	_, mapped := f.hostFilesPod(hostRoot)
	_, other := f.hostFilesPod(hostRoot + idCount)
	containers := filepath.Join(f.State, "containers")
	searched := []string{f.State, f.Data, containers}
	for _, id := range []string{plain, mapped, other} {
		searched = append(searched, filepath.Join(containers, id))
	}
	for _, dir := range []string{"keeper", "pods", "probe", "runtimes", "admin.sock", "mica.sock", "nri.sock"} {
		searched = append(searched, filepath.Join(f.State, dir))
	}
	paths := below(t, f.State, f.Data)
	if len(paths) < 500 {
		t.Errorf("%d paths are below the node's directories: the pods do not exist", len(paths))
	}
	f.refuse("an unprivileged user", nobody, paths, searched...)
	f.refuse("root of another pod's user namespace", hostRoot+idCount, below(t, filepath.Join(containers, plain), filepath.Join(containers, mapped), filepath.Join(f.State, "pods")), searched...)
}

// The same applies to the files of a checkpoint in progress.
func TestHostUsersReachNoCheckpoint(t *testing.T) {
	f := start(t)
	if shared.criu == "" {
		t.Skip("no CRIU works with this kernel")
	}
	f.no(f.Kill())
	f.Env = append(f.Env, failpoint.Variable+"=checkpoint-captured=kill")
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	_, id := f.hostFilesPod(0)
	if err := f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(t.TempDir(), "x.tar")}); err == nil {
		t.Error("the daemon did not die during the checkpoint")
	}
	paths := below(t, filepath.Join(f.Data, "cri", "checkpoints"))
	if len(paths) < 5 {
		t.Errorf("%d paths belong to the checkpoint", len(paths))
	}
	f.refuse("an unprivileged user", nobody, paths)
	f.no(f.Kill())
	f.Env = nil
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
}

// At its start, a node tightens directories with the modes of an older build, below running pods.
func TestOldModesAreTightened(t *testing.T) {
	f := start(t)
	p, plain := f.hostFilesPod(0)
	_, mapped := f.hostFilesPod(hostRoot)
	f.no(f.StopDaemon())
	loose := []string{
		f.Data, filepath.Join(f.Data, "cri"), filepath.Join(f.Data, "cri", "pods"), filepath.Join(f.Data, "cri", "containers"),
		filepath.Join(f.State, "pods"), filepath.Join(f.State, "pods", p.id),
	}
	bundles := []string{filepath.Join(f.State, "containers", plain), filepath.Join(f.State, "containers", mapped)}
	for _, dir := range append(bundles, loose...) {
		f.no(os.Chmod(dir, 0o755))
	}
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	for _, dir := range loose[1:] {
		f.wantMode(dir, 0o700)
	}
	f.wantMode(f.Data, 0o750)
	for _, dir := range bundles {
		f.wantMode(dir, 0o710)
	}
	if got := f.exec(mapped, "sh", "-c", "ls /image/bin/lines; cat /dev/shm/f"); got != "/image/bin/lines\nsecret\n" {
		t.Errorf("exec printed %q", got)
	}
}

func (f *fixture) wantMode(path string, want fs.FileMode) {
	f.t.Helper()
	st, err := os.Stat(path)
	f.no(err)
	if got := st.Mode().Perm(); got != want {
		f.t.Errorf("%s has mode %o, want %o", path, got, want)
	}
}
