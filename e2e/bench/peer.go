package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/containerd"
	"github.com/micarun/mica/e2e/node"
)

// peer is one of the two runtimes.
type peer struct {
	name    string
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
	parent  string // parent cgroup of its pods
	logs    string // directory of container logs
	serial  atomic.Int64
	// pids returns the runtime's own processes.
	pids func() ([]int, error)
	// restart kills the daemon with SIGKILL and returns the time until the next one has listed its
	// pods.
	restart func(context.Context) (time.Duration, error)
	stop    func(context.Context) error

	// What parts leave for the charts.
	starts starts    // of calls
	memory []float64 // of crowd, in KiB, at settings.crowdSizes
}

const (
	workload = "registry.test/mica/busybox:latest"
	python   = "registry.test/mica/python:latest"
)

const logName = "container.log"

// micaArgs describes one Mica.
type micaArgs struct {
	name    string // of the column
	bin     string
	slot    *node.Slot
	confDir string // "" for the embedded network
	runtime string // OCI runtime, "" for the daemon's choice
}

func startMica(ctx context.Context, s *stage, a micaArgs) (*peer, error) {
	data, err := s.store(ctx, a.slot.Name)
	if err != nil {
		return nil, err
	}
	n, err := node.Start(ctx, node.Options{
		Bin: a.bin, Name: a.slot.Name, State: a.slot.State, Data: filepath.Join(data, "root"), OCIRuntime: a.runtime,
		Subnet: a.slot.Subnet, Metrics: a.slot.Metrics, Mirror: s.registry.Addr, ConfDir: a.confDir,
	})
	if err != nil {
		return nil, err
	}
	p := &peer{name: a.name, runtime: n.Runtime, images: n.Images, parent: n.CgroupParent(), logs: filepath.Join(s.work, a.slot.Name+"-logs")}
	p.pids = func() ([]int, error) {
		keeper, err := n.KeeperPid()
		return []int{n.Pid(), keeper}, err
	}
	p.restart = func(ctx context.Context) (time.Duration, error) {
		if err := n.Kill(); err != nil {
			return 0, err
		}
		begin := time.Now()
		if _, err := n.StartDaemon(ctx); err != nil {
			return 0, err
		}
		p.runtime, p.images = n.Runtime, n.Images
		_, err := p.runtime.ListPodSandbox(ctx, nil)
		return time.Since(begin), err
	}
	p.stop = func(ctx context.Context) error { return errors.Join(removeCgroups(p.parent), n.Remove(ctx)) }
	return p, nil
}

// startContainerd starts Debian's containerd with a separate store.
func startContainerd(ctx context.Context, s *stage) (*peer, error) {
	data, err := s.store(ctx, "cd")
	if err != nil {
		return nil, err
	}
	parent := "/" + s.slot.Name + "-cd"
	d, err := containerd.Start(ctx, containerd.Options{
		Binary: "containerd", Data: data, Socket: filepath.Join(s.work, "cd.sock"), ConfDir: s.confDir, Certs: s.certs,
		Parent: parent, Log: filepath.Join(s.work, "containerd.log"),
	})
	if err != nil {
		return nil, err
	}
	p := &peer{
		name: "containerd", runtime: d.Runtime, images: d.Images, parent: parent,
		logs: filepath.Join(s.work, "cd-logs"), pids: d.Processes,
	}
	p.restart = func(ctx context.Context) (time.Duration, error) {
		if err := d.End(syscall.SIGKILL); err != nil {
			return 0, err
		}
		begin := time.Now()
		if err := d.StartDaemon(ctx); err != nil {
			return 0, err
		}
		p.runtime, p.images = d.Runtime, d.Images
		_, err := p.runtime.ListPodSandbox(ctx, nil)
		return time.Since(begin), err
	}
	p.stop = func(ctx context.Context) error { return errors.Join(d.Remove(ctx), removeCgroups(parent)) }
	return p, nil
}

// removeCgroups removes the pods' cgroups, as a kubelet would.
func removeCgroups(parent string) error {
	var errs []error
	for _, pattern := range []string{"/*" + parent + "/*", "/*" + parent, parent + "/*", parent} {
		dirs, err := filepath.Glob("/sys/fs/cgroup" + pattern)
		errs = append(errs, err)
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				errs = append(errs, os.Remove(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// startPod runs one pod with one sleeping container.
func (p *peer) startPod(ctx context.Context) (pod, container string, err error) {
	return p.startPodTimed(ctx, &starts{})
}

// starts are the times of the three calls that start a pod.
type starts struct{ run, create, start samples }

// podArgs describe a pod that differs from startPod's.
type podArgs struct {
	hostNetwork bool
	command     []string // nil: sleep
	times       *starts  // gets the time of each call; nil for none
}

// startPodTimed is startPod, and adds the time of each call to t.
func (p *peer) startPodTimed(ctx context.Context, t *starts) (pod, container string, err error) {
	pod, container, _, err = p.run(ctx, podArgs{times: t})
	return pod, container, err
}

// start starts a pod and returns the path of its container's log.
func (p *peer) start(ctx context.Context, a podArgs) (pod, log string, err error) {
	pod, _, log, err = p.run(ctx, a)
	return pod, log, err
}

func (p *peer) run(ctx context.Context, a podArgs) (pod, container, log string, err error) {
	name := fmt.Sprintf("bench-%d", p.serial.Add(1))
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname: name, LogDirectory: filepath.Join(p.logs, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: p.parent + "/" + name},
	}
	if a.hostNetwork {
		config.Hostname = ""
		namespaces.Network = runtimeapi.NamespaceMode_NODE
		config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}
	}
	t := a.times
	if t == nil {
		t = &starts{}
	}
	command := a.command
	if command == nil {
		command = []string{"sleep", "100000"}
	}
	err = t.run.timed(func() (err error) {
		pod, err = p.runtime.RunPodSandbox(ctx, config, "")
		return err
	})
	if err != nil {
		return "", "", "", fmt.Errorf("run pod: %w", err)
	}
	err = t.create.timed(func() (err error) {
		container, err = p.runtime.CreateContainer(ctx, pod, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "sleep"},
			Image:    &runtimeapi.ImageSpec{Image: workload},
			Command:  command,
			LogPath:  logName,
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				NamespaceOptions: namespaces,
			}},
		}, config)
		return err
	})
	if err != nil {
		return "", "", "", fmt.Errorf("create container: %w", err)
	}
	if err := t.start.timed(func() error { return p.runtime.StartContainer(ctx, container) }); err != nil {
		return "", "", "", fmt.Errorf("start container: %w", err)
	}
	return pod, container, filepath.Join(config.LogDirectory, logName), nil
}

func (p *peer) removePod(ctx context.Context, pod string) error {
	if err := p.runtime.StopPodSandbox(ctx, pod); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if err := p.runtime.RemovePodSandbox(ctx, pod); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}
