package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/failpoint"
)

// rewrite copies an archive and changes its files: f returns the new content, or nil to omit the
// file. more are entries to write first; the one called deleted.files has content.
func rewrite(t *testing.T, archive string, more []tar.Header, f func(name string, data []byte) []byte) string {
	t.Helper()
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range more {
		var data []byte
		if h.Name == "deleted.files" {
			data = []byte(`["../../../../evil"]`)
		}
		put(h, data)
	}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			put(*h, nil)
		} else if data = f(h.Name, data); data != nil {
			put(*h, data)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "changed.tar")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func same(_ string, data []byte) []byte { return data }

// in returns a function that replaces text in one file.
func in(file, old, text string) func(string, []byte) []byte {
	return func(name string, data []byte) []byte {
		if name != file {
			return data
		}
		return bytes.ReplaceAll(data, []byte(old), []byte(text))
	}
}

// Hostile, damaged and unsuitable archives are rejected with the stage and the reason, and leave
// nothing.
func TestRestoreRefuses(t *testing.T) {
	f := startCriu(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", counting))
	good := filepath.Join(t.TempDir(), "good.tar")
	f.checkpoint(id, good)
	data, err := os.ReadFile(good)
	f.no(err)
	cut := filepath.Join(t.TempDir(), "cut.tar")
	f.no(os.WriteFile(cut, data[:len(data)/2], 0o600))
	reg := func(name string) []tar.Header { return []tar.Header{{Typeflag: tar.TypeReg, Name: name, Mode: 0o600}} }
	for name, tc := range map[string]struct {
		archive string
		change  func(*runtimeapi.ContainerConfig)
		code    codes.Code
		says    string
	}{
		"leaves the directory": {rewrite(t, good, reg("../../evil"), same), nil, codes.InvalidArgument, "leaves the archive"},
		"absolute":             {rewrite(t, good, reg("/etc/evil"), same), nil, codes.InvalidArgument, "bad name"},
		"images directory is a link": {
			rewrite(t, good, []tar.Header{{Typeflag: tar.TypeSymlink, Name: "checkpoint", Linkname: "/etc"}}, same), nil,
			codes.InvalidArgument, "not a directory",
		},
		"cut":            {cut, nil, codes.InvalidArgument, "damaged"},
		"not an archive": {"/etc/passwd", nil, codes.InvalidArgument, "/etc/passwd"},
		"a directory":    {filepath.Dir(good), nil, codes.InvalidArgument, "not a file"},
		"another runtime": {
			rewrite(t, good, nil, in("config.dump", `"runtime":"`, `"runtime":"runsc","before":"`)), nil,
			codes.FailedPrecondition, `made by OCI runtime "runsc"`,
		},
		"image missing": {
			rewrite(t, good, nil, in("config.dump", "registry.test/mica/busybox", "registry.test/mica/gone")), nil,
			codes.NotFound, "pull it first",
		},
		"a hostile root filesystem": {rewrite(t, good, nil, func(name string, data []byte) []byte {
			if name == "rootfs-diff.tar" {
				return escaping(t)
			}
			return data
		}), nil, codes.InvalidArgument, "rootfs-diff.tar"},
		"deletes a file outside": {rewrite(t, good, reg("deleted.files"), same), nil, codes.InvalidArgument, "leaves the root"},
		"of an engine that writes fewer files": {rewrite(t, good, nil, func(name string, data []byte) []byte {
			if name == "stats-dump" || name == "container.log" || name == "rootfs-diff.tar" {
				return nil
			}
			return data
		}), nil, codes.OK, ""},
		"another terminal": {good, func(c *runtimeapi.ContainerConfig) { c.Tty = true }, codes.FailedPrecondition, "terminal"},
		"stdin":            {good, func(c *runtimeapi.ContainerConfig) { c.Stdin = true }, codes.FailedPrecondition, "stdin"},
		"another mount": {good, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: filepath.Dir(good)}}
		}, codes.FailedPrecondition, `"/data"`},
		"fewer privileges": {good, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		}, codes.FailedPrecondition, "capabilities"},
		"the node's process IDs": {good, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}, codes.FailedPrecondition, "shares the node's process IDs"},
		"the pod's process IDs": {good, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, codes.FailedPrecondition, "pid namespace was its own"},
	} {
		t.Run(name, func(t *testing.T) {
			config := f.containerConfig(tc.archive)
			if tc.change != nil {
				tc.change(config)
			}
			id, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
			if tc.code == codes.OK {
				f.no(err)
				f.no(f.Runtime.RemoveContainer(f.ctx, id))
			} else if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), config.Metadata.Name) {
				t.Errorf("%v, want %s with %q", err, tc.code, tc.says)
			}
			list, err := f.Runtime.ListContainers(f.ctx, nil)
			f.no(err)
			if len(list) != 1 {
				t.Errorf("the node has %d containers", len(list))
			}
			if _, err := os.Stat(filepath.Join(p.config.LogDirectory, config.LogPath)); err == nil && tc.code != codes.OK {
				t.Error("a log remains")
			}
		})
	}
	for _, dir := range []string{f.Data, filepath.Join(f.Data, "cri"), filepath.Join(f.Data, "cri", "containers")} {
		if _, err := os.Stat(filepath.Join(dir, "evil")); err == nil {
			t.Errorf("the archive changed %s", dir)
		}
	}
}

// escaping returns a tar that writes outside its directory.
func escaping(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{{Typeflag: tar.TypeSymlink, Name: "tmp/out", Linkname: "/root"}, {Typeflag: tar.TypeReg, Name: "tmp/out/evil"}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// If CRIU cannot read its images, the start fails and the container ends with the reason.
func TestRestoreOfDamagedImages(t *testing.T) {
	f := startCriu(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", counting))
	good := filepath.Join(t.TempDir(), "good.tar")
	f.checkpoint(id, good)
	bad := rewrite(t, good, nil, func(name string, data []byte) []byte {
		if name == "checkpoint/pstree.img" {
			return []byte("nonsense")
		}
		return data
	})
	config := f.containerConfig(bad)
	restored, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
	f.no(err)
	err = f.Runtime.StartContainer(f.ctx, restored)
	if err == nil || !strings.Contains(err.Error(), "restore from "+bad) || !strings.Contains(err.Error(), "CRIU says") {
		t.Errorf("start with damaged images: %v", err)
	}
	got := f.status(restored)
	if got.State != runtimeapi.ContainerState_CONTAINER_EXITED || got.Reason != "StartError" || got.ExitCode != 128 || !strings.Contains(got.Message, "CRIU says") {
		t.Errorf("state %v, reason %q, code %d, message %q", got.State, got.Reason, got.ExitCode, got.Message)
	}
	// Stopped or removed before its start, such a container has no process to end.
	config.Metadata.Name = "never"
	never, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
	f.no(err)
	f.no(f.Runtime.StopContainer(f.ctx, never, 1))
	f.no(f.Runtime.RemoveContainer(f.ctx, never))
}

// The daemon dies during a checkpoint: at each fail point, and while CRIU writes much memory. The
// container continues to run, nothing of the archive is left, and the next checkpoint succeeds.
func TestCheckpointSurvivesKills(t *testing.T) {
	for _, point := range []string{"checkpoint-frozen", "checkpoint-captured", "checkpoint-written", ""} {
		name := point
		if point == "" {
			name = "while CRIU works"
		}
		t.Run(name, func(t *testing.T) {
			f := startCriu(t)
			p := f.runPod(f.podConfig())
			script := counting
			if point == "" { // some 256 MB, which take time
				script = `x=$(head -c 67108864 /dev/zero | tr '\0' x); y=$x$x; z=$x; ` + counting
			}
			config := f.containerConfig(busyboxImage, "sh", "-c", script)
			id := f.start(p, config)
			f.eventually("numbers", func() bool { return f.counted(p, config) > 3 })
			f.restartWith(point)
			dir := t.TempDir()
			request := &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(dir, "x.tar")}
			if point == "" {
				for !f.killInDump(request) { // the checkpoint was complete before the kill
					f.restartWith("")
					f.noCheckpoints()
					f.no(os.Remove(request.Location))
				}
			} else if err := f.Runtime.CheckpointContainer(f.ctx, request); err == nil || !f.died() {
				t.Fatalf("the daemon survived fail point %s: %v", point, err)
			}
			f.no(f.Kill())
			f.restartWith("")
			f.countsOn(p, config)
			f.noCheckpoints()
			only(t, dir)
			f.checkpoint(id, request.Location)
			f.countsOn(p, config)
		})
	}
}

// restartWith restarts the daemon with an armed fail point that kills it.
func (f *fixture) restartWith(point string) {
	f.t.Helper()
	if f.Pid() != 0 {
		f.no(f.StopDaemon())
	}
	f.Env = nil
	if point != "" {
		f.Env = []string{failpoint.Variable + "=" + point + "=kill"}
	}
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
}

// noCheckpoints waits until the daemon has removed what a killed one left of a checkpoint.
func (f *fixture) noCheckpoints() {
	f.t.Helper()
	f.eventually("nothing is left of the checkpoint", func() bool {
		left, err := os.ReadDir(filepath.Join(f.Data, "cri", "checkpoints"))
		return err == nil && len(left) == 0
	})
}

// killInDump starts a checkpoint and kills the daemon while CRIU writes images. It reports whether
// the kill came before the end of the checkpoint.
func (f *fixture) killInDump(request *runtimeapi.CheckpointContainerRequest) bool {
	f.t.Helper()
	done := make(chan error, 1)
	client := f.Runtime
	go func() { done <- client.CheckpointContainer(f.ctx, request) }()
	f.eventually("CRIU writes memory", func() bool {
		pages, err := filepath.Glob(filepath.Join(f.Data, "cri/checkpoints/*/*/checkpoint/pages-*.img"))
		return err == nil && len(pages) > 0
	})
	f.no(f.Kill())
	<-done
	return !exists(request.Location) // the connection may have ended before the answer
}

// The daemon dies during a restore. A container that was not created is gone, and a started one
// runs.
func TestRestoreSurvivesKills(t *testing.T) {
	f := startCriu(t)
	p := f.runPod(f.podConfig())
	original := f.containerConfig(busyboxImage, "sh", "-c", counting)
	id := f.start(p, original)
	f.eventually("numbers", func() bool { return f.counted(p, original) > 3 })
	archive := filepath.Join(t.TempDir(), "x.tar")
	f.checkpoint(id, archive)
	f.no(f.Runtime.RemoveContainer(f.ctx, id))

	config := f.containerConfig(archive)
	f.restartWith("restore-unpacked")
	if _, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config); err == nil || !f.died() {
		t.Fatalf("the daemon survived the fail point: %v", err)
	}
	f.no(f.Kill())
	f.restartWith("restore-restored")
	list, err := f.Runtime.ListContainers(f.ctx, nil)
	f.no(err)
	if len(list) != 0 {
		t.Errorf("the node has %d containers", len(list))
	}
	restored, err := f.Runtime.CreateContainer(f.ctx, p.id, config, p.config)
	f.no(err)
	// A created container has no process yet and survives the daemon.
	f.no(f.StopDaemon())
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	if got := f.status(restored).State; got != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart the container is %v", got)
	}
	if err := f.Runtime.StartContainer(f.ctx, restored); err == nil || !f.died() {
		t.Fatalf("the daemon survived the fail point: %v", err)
	}
	f.no(f.Kill())
	f.restartWith("")
	if got := f.status(restored).State; got != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("after the kill the container is %v", got)
	}
	f.countsOn(p, config)
	if got := f.exec(restored, "echo", "exec"); got != "exec\n" {
		t.Errorf("exec printed %q", got)
	}
	f.no(f.Runtime.StopContainer(f.ctx, restored, int64((20 * time.Second).Seconds())))
	if got := f.status(restored); got.ExitCode != 7 {
		t.Errorf("exit code is %d", got.ExitCode)
	}
}
