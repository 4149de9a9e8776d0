package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/failpoint"
)

// TestCrashAtEveryFailPoint kills the daemon at each fail point in the source, one after the other,
// during a pull or an operation on a pod. Property: the next daemon starts, the check finds
// nothing, the same operations succeed, and nothing is left once pods and images are removed.
func TestCrashAtEveryFailPoint(t *testing.T) {
	points := failPoints(t)
	if len(points) < 20 {
		t.Fatalf("only %d fail points found: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(strings.ReplaceAll(point, "/", "."), func(t *testing.T) {
			f := start(t)
			live := f.life
			if strings.HasPrefix(point, "checkpoint-") || strings.HasPrefix(point, "restore-") {
				f.needCriu()
				live = f.twoLives
			}
			f.no(f.StopDaemon())
			if strings.HasPrefix(point, "overlay.sweep.") {
				// This fail point is reached only if an earlier daemon left a draft.
				f.no(os.MkdirAll(filepath.Join(f.Data, "overlay2", strings.Repeat("ab", 32), "diff", "etc"), 0o755))
			}
			f.Env = append(f.Env, failpoint.Variable+"="+point+"=kill")
			if _, err := f.StartDaemon(f.ctx); err == nil {
				// The error comes from the call during which the daemon died.
				err := live()
				if !f.died() {
					t.Fatalf("the daemon did not reach fail point %s: %v", point, err)
				}
			}
			f.no(f.Kill())
			f.Env = nil
			_, err := f.StartDaemon(f.ctx)
			f.no(err)
			if out, err := f.Mica(f.ctx, "check"); err != nil {
				t.Errorf("check after the crash: %v: %s", err, out)
			}
			f.no(live())
		})
	}
}

// failPoints returns the names of all fail points in the product's source.
func failPoints(t *testing.T) []string {
	t.Helper()
	root, err := images.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	hit := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	var names []string
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range hit.FindAllSubmatch(source, -1) {
			names = append(names, string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// life runs a pod, a container and an image through all their operations. It returns the first
// error.
func (f *fixture) life() error {
	image := &runtimeapi.ImageSpec{Image: busyboxImage}
	if _, err := f.Images.PullImage(f.ctx, image, nil, nil); err != nil {
		return err
	}
	podConfig := f.podConfig()
	podConfig.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: int32(f.freePort())}}
	pod, err := f.Runtime.RunPodSandbox(f.ctx, podConfig, "")
	if err != nil {
		return err
	}
	container, err := f.Runtime.CreateContainer(f.ctx, pod, f.containerConfig(busyboxImage, "sleep", "1000"), podConfig)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return f.Runtime.StartContainer(f.ctx, container) },
		func() error { return f.Runtime.StopContainer(f.ctx, container, 0) },
		func() error { return f.Runtime.RemoveContainer(f.ctx, container) },
		func() error { return f.RemovePod(f.ctx, pod) },
		func() error { return f.Images.RemoveImage(f.ctx, image) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// twoLives checkpoints a container and restores it as another one.
func (f *fixture) twoLives() error {
	if _, err := f.Images.PullImage(f.ctx, &runtimeapi.ImageSpec{Image: busyboxImage}, nil, nil); err != nil {
		return err
	}
	podConfig := f.podConfig()
	pod, err := f.Runtime.RunPodSandbox(f.ctx, podConfig, "")
	if err != nil {
		return err
	}
	container, err := f.Runtime.CreateContainer(f.ctx, pod, f.containerConfig(busyboxImage, "sleep", "1000"), podConfig)
	if err != nil {
		return err
	}
	archive := filepath.Join(f.t.TempDir(), "x.tar")
	for _, step := range []func() error{
		func() error { return f.Runtime.StartContainer(f.ctx, container) },
		func() error {
			return f.Runtime.CheckpointContainer(f.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: container, Location: archive})
		},
		func() error {
			container, err = f.Runtime.CreateContainer(f.ctx, pod, f.containerConfig(archive), podConfig)
			return err
		},
		func() error { return f.Runtime.StartContainer(f.ctx, container) },
		func() error { return f.RemovePod(f.ctx, pod) },
		f.twoPodLives,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// twoPodLives checkpoints a pod and restores it as another one.
func (f *fixture) twoPodLives() error {
	config := f.podConfig()
	p, err := f.Runtime.RunPodSandbox(f.ctx, config, "")
	if err != nil {
		return err
	}
	container := f.containerConfig(busyboxImage, "sleep", "1000")
	id, err := f.Runtime.CreateContainer(f.ctx, p, container, config)
	if err != nil {
		return err
	}
	d := duo{pod: pod{p, config}, configs: []*runtimeapi.ContainerConfig{container}, ids: []string{id}}
	dir := f.t.TempDir()
	var restored *runtimeapi.RestorePodResponse
	for _, step := range []func() error{
		func() error { return f.Runtime.StartContainer(f.ctx, id) },
		func() error { return f.Runtime.CheckpointPod(f.ctx, d.checkpoint(dir)) },
		func() error { return f.RemovePod(f.ctx, p) },
		func() error {
			restored, err = f.Runtime.RestorePod(f.ctx, f.restore(d, dir))
			return err
		},
		func() error { return f.Runtime.StartContainer(f.ctx, restored.RestoredContainers[0].ContainerId) },
		func() error { return f.RemovePod(f.ctx, restored.PodSandboxId) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// died reports whether the daemon's process has ended.
func (f *fixture) died() bool {
	f.t.Helper()
	gone := false
	f.eventually("the daemon dies or answers", func() bool {
		gone = errors.Is(unix.Kill(f.Pid(), syscall.Signal(0)), unix.ESRCH)
		_, err := f.Runtime.Version(f.ctx, "")
		return gone || err == nil
	})
	return gone
}
