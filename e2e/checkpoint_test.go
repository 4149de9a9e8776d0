package e2e

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/capability"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// counting prints numbers, and exits with 7 at SIGTERM.
const counting = `trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done`

// startCriu is start for tests that need a working CRIU.
func startCriu(t *testing.T) *fixture {
	t.Helper()
	f := start(t)
	f.needCriu()
	return f
}

func (f *fixture) needCriu() {
	f.t.Helper()
	needRuntimeWithCriu(f.t)
	if shared.criu == "" {
		f.t.Skip("no CRIU works with this kernel; e2e/install-criu tries to install one")
	}
}

// needRuntimeWithCriu skips the test if the OCI runtime under test was built without support for
// CRIU.
func needRuntimeWithCriu(t *testing.T) {
	t.Helper()
	if !runtimeHasCriu(t) {
		t.Skip("this crun was built without CRIU")
	}
}

func runtimeHasCriu(t *testing.T) bool {
	t.Helper()
	if os.Getenv(runtimeEnv) != "crun" {
		return true
	}
	out, err := exec.Command("crun", "--version").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(out), "+CRIU")
}

func (f *fixture) checkpoint(id, location string) {
	f.t.Helper()
	if err := f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location}); err != nil {
		f.t.Fatalf("checkpoint container %s: %v", id, err)
	}
}

// counted returns how many numbers a container's log has so far. It fails the test unless each is
// one more than the number before.
func (f *fixture) counted(p pod, config *runtimeapi.ContainerConfig) int {
	f.t.Helper()
	lines := f.log(p, config)
	for i, line := range lines {
		// A terminal ends lines with carriage return and newline.
		if got := strings.TrimSuffix(line.text, "\r"); got != strconv.Itoa(i) {
			f.t.Fatalf("line %d of the log of %s is %q", i, config.Metadata.Name, got)
		}
	}
	return len(lines)
}

func (f *fixture) countsOn(p pod, config *runtimeapi.ContainerConfig) {
	f.t.Helper()
	before := f.counted(p, config)
	f.eventually(config.Metadata.Name+" prints further numbers", func() bool { return f.counted(p, config) > before+1 })
}

// names returns the names of a tar file's entries.
func names(t *testing.T, path string) []string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var found []string
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("read archive: %v", err)
		}
		found = append(found, h.Name)
	}
}

// only fails the test if a directory contains anything but the names.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(want, e.Name()) {
			t.Errorf("left in %s: %s", dir, e.Name())
		}
	}
}

// A container is checkpointed, keeps running and is removed with its pod. Restored in another pod,
// it continues from the checkpoint: no number is missing or duplicated, its files and shared memory
// are unchanged, and its exit code is its own.
func TestCheckpointAndRestore(t *testing.T) {
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"plain":    func(*runtimeapi.ContainerConfig) {},
		"terminal": func(c *runtimeapi.ContainerConfig) { c.Tty = true },
		"stdin":    func(c *runtimeapi.ContainerConfig) { c.Stdin = true },
		"shared process IDs": func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		},
		"unprivileged": func(c *runtimeapi.ContainerConfig) {
			if canSeeLimits(t) {
				c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			}
			c.Linux.SecurityContext.NoNewPrivs = true
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := startCriu(t)
			config := f.containerConfig(busyboxImage, "sh", "-c", counting)
			change(config)
			f.roundTrip(config)
		})
	}
}

// canSeeLimits reports whether this process, and so CRIU, may read the resource limits of another
// user's processes. Machines allow it, some sandboxes do not.
func canSeeLimits(t *testing.T) bool {
	t.Helper()
	held, err := capability.NewPid2(0)
	if err == nil {
		err = held.Load()
	}
	if err != nil {
		t.Fatal(err)
	}
	return held.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)
}

const dirty = `set -e; cd /tmp; echo memory >/dev/shm/data; mkdir -p a/b; echo new >a/b/file; ln a/b/file second; ln -s a link; mkfifo fifo`

func (f *fixture) roundTrip(config *runtimeapi.ContainerConfig) {
	t := f.t
	p := f.runPod(f.podConfig())
	id := f.start(p, config)
	f.eventually("numbers", func() bool { return f.counted(p, config) > 3 })
	f.exec(id, "sh", "-c", dirty)
	location := filepath.Join(t.TempDir(), "checkpoint.tar")
	f.checkpoint(id, location)
	f.countsOn(p, config)
	if st, err := os.Stat(location); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("archive: %v, %v", st.Mode(), err)
	}
	only(t, filepath.Dir(location), "checkpoint.tar")
	found := names(t, location)
	for _, want := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img", "rootfs-diff.tar", "devshm-checkpoint.tar", "container.log", "dump.log", "stats-dump"} {
		if !slices.Contains(found, want) {
			t.Errorf("the archive lacks %s; it has %q", want, found)
		}
	}
	f.no(f.RemovePod(f.ctx, p.id))

	next := f.runPod(f.podConfig())
	again := proto.CloneOf(config)
	again.Metadata = &runtimeapi.ContainerMetadata{Name: "restored"}
	again.Image = &runtimeapi.ImageSpec{Image: location}
	again.Command, again.LogPath = nil, "restored.log"
	restored, err := f.Runtime.CreateContainer(f.ctx, next.id, again, next.config)
	f.no(err)
	if got := f.status(restored); got.State != runtimeapi.ContainerState_CONTAINER_CREATED || got.Image.Image != busyboxImage {
		t.Errorf("before its start the container is %v of image %s", got.State, got.Image.Image)
	}
	before := f.counted(next, again)
	if _, _, err := f.Runtime.ExecSync(f.ctx, restored, []string{"true"}, time.Second); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("exec before the start: %v", err)
	}
	f.no(f.Runtime.StartContainer(f.ctx, restored))
	f.eventually("the container prints further numbers", func() bool { return f.counted(next, again) > before+3 })
	f.wantRestored(restored)
	f.no(f.Runtime.StopContainer(f.ctx, restored, 20))
	if got := f.status(restored); got.ExitCode != 7 {
		t.Errorf("exit code is %d, want the trap's exit code", got.ExitCode)
	}
	if _, err := os.Stat(filepath.Join(f.Data, "cri", "containers", restored, "checkpoint")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unpacked checkpoint remains: %v", err)
	}
}

// wantRestored checks the files that dirty wrote, and what an exec sees of the checkpointed
// process.
func (f *fixture) wantRestored(id string) {
	f.t.Helper()
	script := `cat /dev/shm/data /tmp/link/b/file; stat -c %h /tmp/second; [ -p /tmp/fifo ] && echo fifo; tr '\0' ' ' </proc/1/cmdline`
	if shared := f.exec(id, "sh", "-c", `readlink /proc/1/exe || true`); strings.Contains(shared, "mica-init") {
		script = strings.Replace(script, "/proc/1/cmdline", "/dev/null", 1)
	}
	got := f.exec(id, "sh", "-c", script)
	if !strings.HasPrefix(got, "memory\nnew\n2\nfifo\n") {
		f.t.Errorf("restored files: %q", got)
	}
}

// A checkpoint location has a complete archive or none, whatever the path was before.
func TestCheckpointLocations(t *testing.T) {
	f := startCriu(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", counting)
	id := f.start(p, config)
	dir := t.TempDir()
	old := filepath.Join(dir, "old.tar")
	f.no(os.WriteFile(old, []byte("older"), 0o644))
	f.checkpoint(id, old)
	if !slices.Contains(names(t, old), "config.dump") {
		t.Error("an older file is not replaced")
	}
	f.no(os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	for location, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "relative.tar": codes.InvalidArgument, dir: codes.InvalidArgument,
		dir + "/none/x.tar": codes.InvalidArgument, dir + "/link": codes.InvalidArgument, old + "/x.tar": codes.InvalidArgument,
	} {
		err := f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location})
		if status.Code(err) != want {
			t.Errorf("location %q: %v", location, err)
		}
	}
	created := f.create(p, f.containerConfig(busyboxImage, "true"))
	for id, want := range map[string]codes.Code{"none": codes.NotFound, created: codes.FailedPrecondition} {
		err := f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: dir + "/x.tar"})
		if status.Code(err) != want {
			t.Errorf("checkpoint of container %s: %v", id, err)
		}
	}
	only(t, dir, "old.tar", "link")
	f.countsOn(p, config)
}

// fakeCriu writes a shell script that replaces CRIU.
func fakeCriu(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Without a CRIU, with one that does not work, or with an OCI runtime that does not support it, the
// calls are rejected with the reason and change nothing.
func TestCheckpointRefused(t *testing.T) {
	for name, tc := range map[string]struct{ criu, says string }{
		"absent":             {"/none/criu", "find CRIU"},
		"old":                {fakeCriu(t, `echo "Version: 3.11"`), `CRIU "3.11", and 3.16 or newer is needed`},
		"unsupported kernel": {fakeCriu(t, `[ "$1" = --version ] && echo "Version: 3.17.1" && exit; echo "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds" >&2; exit 1`), "CRIU 3.17.1 does not work with this kernel: criu check: vdso: Unexpected rt vDSO area bounds"},
		"no output":          {fakeCriu(t, "exit 1"), "read version of"},
	} {
		t.Run(name, func(t *testing.T) {
			if !runtimeHasCriu(t) {
				tc.says = "crun was built without CRIU"
			}
			f := startOn(t, func(o *node.Options) { o.Criu = tc.criu })
			p := f.runPod(f.podConfig())
			config := f.containerConfig(busyboxImage, "sh", "-c", counting)
			id := f.start(p, config)
			dir := t.TempDir()
			d := duo{pod: p, configs: []*runtimeapi.ContainerConfig{config}, ids: []string{id}}
			archive := filepath.Join(dir, "x.tar")
			refused := func(what string, err error) {
				t.Helper()
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%s: %v, want FailedPrecondition with %q", what, err, tc.says)
				}
			}
			refused("checkpoint", f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive}))
			refused("checkpoint a pod", f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)))
			only(t, dir)
			_, err := f.Runtime.RestorePod(f.ctx, f.restore(d, dir))
			refused("restore a pod", err)
			f.no(os.WriteFile(archive, nil, 0o600))
			restored := f.containerConfig(archive)
			_, err = f.Runtime.CreateContainer(f.ctx, p.id, restored, p.config)
			refused("restore", err)
			f.countsOn(p, config)
		})
	}
}

// If CRIU hangs, the checkpoint fails at the request's time-out, and the container continues to
// run.
func TestCheckpointTimeout(t *testing.T) {
	needRuntimeWithCriu(t)
	hangs := fakeCriu(t, `case $1 in --version) echo "Version: 4.1" ;; check) ;; *) while kill -0 $PPID; do sleep 0.1; done ;; esac`)
	f := startOn(t, func(o *node.Options) { o.Criu = hangs })
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", counting)
	id := f.start(p, config)
	dir := t.TempDir()
	request := &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(dir, "x.tar"), Timeout: 1}
	client := runtimeapi.NewRuntimeServiceClient(f.connect())
	if _, err := client.CheckpointContainer(f.ctx, request); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("checkpoint with a hanging CRIU: %v", err)
	}
	f.countsOn(p, config)
	request.Timeout = 100
	short, cancel := context.WithTimeout(f.ctx, time.Second)
	defer cancel()
	if _, err := client.CheckpointContainer(short, request); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("cancelled checkpoint: %v", err)
	}
	f.countsOn(p, config)
	only(t, dir)
}
