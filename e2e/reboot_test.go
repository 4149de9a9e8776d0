package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
)

// A simulated reboot: every process and mount is gone, the state directory is empty, and the
// records have another boot ID. The containers are reported as ended, with the reason; the leases
// are released; the data root can be used.
func TestReboot(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	running := f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	ended := f.start(p, f.containerConfig(busyboxImage, "sh", "-c", "exit 3"))
	f.await(ended)
	created := f.create(p, f.containerConfig(busyboxImage, "true"))
	f.reboot()

	response, err := f.Runtime.PodSandboxStatus(f.ctx, p.id, false)
	f.no(err)
	if response.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod is %v after the reboot", response.Status.State)
	}
	for name, id := range map[string]string{"running": running, "created": created} {
		got := f.status(id)
		if got.State != runtimeapi.ContainerState_CONTAINER_EXITED || got.ExitCode == 0 || got.Message == "" {
			t.Errorf("%s container is %v with code %d and message %q", name, got.State, got.ExitCode, got.Message)
		}
	}
	if got := f.status(ended); got.ExitCode != 3 {
		t.Errorf("container that had ended before has code %d, want 3", got.ExitCode)
	}
	census, err := f.Census(f.ctx)
	f.no(err)
	if len(census["lease"]) > 0 || len(census["process"]) > 0 {
		t.Errorf("leases %q and processes %q after the reboot", census["lease"], census["process"])
	}
	// The kubelet creates the pod again.
	again, before := f.podConfig(), p.config.Metadata
	again.Metadata = &runtimeapi.PodSandboxMetadata{Name: before.Name, Uid: before.Uid, Namespace: before.Namespace, Attempt: 1}
	if got := f.output(f.runPod(again), f.containerConfig(busyboxImage, "echo", "up")); got != "up\n" {
		t.Errorf("container after the reboot printed %q", got)
	}
}

// reboot makes the node's state look like after a reboot.
func (f *fixture) reboot() {
	f.t.Helper()
	f.no(f.Kill())
	keeper, err := f.KeeperPid()
	f.no(err)
	f.no(unix.Kill(keeper, unix.SIGKILL))
	f.eventually("every process of the node is gone", func() bool {
		census, err := f.Census(f.ctx)
		f.no(err)
		for _, item := range census["process"] {
			pid := 0
			if _, err := fmt.Sscan(item, &pid); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL) // may already be unmounted
			}
		}
		return len(census["process"]) == 0
	})
	census, err := f.Census(f.ctx)
	f.no(err)
	for _, mount := range slices.Backward(census["mount"]) {
		f.no(unix.Unmount(mount, unix.MNT_DETACH))
	}
	for _, cgroup := range slices.Backward(census["cgroup"]) {
		f.no(os.Remove(cgroup))
	}
	f.no(os.RemoveAll(f.State))
	f.no(os.Mkdir(f.State, 0o711))
	f.otherBoot()
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	f.no(f.awaitCheck(f.ctx)) // leases are released in the background
}

// otherBoot changes the boot ID in every record.
func (f *fixture) otherBoot() {
	f.t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	f.no(err)
	changed := 0
	err = filepath.WalkDir(filepath.Join(f.Data, "cri"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		other := bytes.ReplaceAll(data, bytes.TrimSpace(id), []byte("00000000-0000-0000-0000-000000000000"))
		if !bytes.Equal(data, other) {
			changed++
		}
		return os.WriteFile(path, other, 0o600)
	})
	f.no(err)
	if changed == 0 {
		f.t.Fatal("no record has a boot ID")
	}
}

// If the disk fills up during a layer's extraction, the pull fails with that reason and leaves no
// incomplete data, and a smaller image can be pulled.
func TestDiskFull(t *testing.T) {
	var disk string
	f := startOn(t, func(o *node.Options) {
		disk = filepath.Join(o.Data, "disk")
		o.Data = filepath.Join(disk, "root")
		if err := errors.Join(os.MkdirAll(disk, 0o755), unix.Mount("small", disk, "tmpfs", 0, "size=12m")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	})
	_, err := f.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: nginxImage}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "nginx") {
		t.Errorf("pull onto a full disk: %v", err)
	}
	leaks, err := f.AwaitClean(f.ctx, f.baseline, patience.Of(cleanWait))
	if err != nil || len(leaks) > 0 {
		t.Errorf("left behind: %q, %v", leaks, err)
	}
	if _, err := f.Mica(f.ctx, "check"); err != nil {
		t.Error(err)
	}
	f.pull(busyboxImage)
}
