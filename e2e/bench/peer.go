package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// peer is one of the two runtimes.
type peer struct {
	name    string
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
	parent  string // cgroup of its pods
	logs    string // directory of container logs
	serial  int
	// pids returns the processes that are the runtime's own.
	pids func() ([]int, error)
	// restart kills the daemon by SIGKILL and returns how long the next
	// one took to list its pods.
	restart func(context.Context) (time.Duration, error)
	stop    func(context.Context) error
}

const (
	workload = "registry.test/mica/busybox:latest"
	python   = "registry.test/mica/python:latest"
)

func startMica(ctx context.Context, s *stage, bin string) (*peer, error) {
	data, err := s.store(ctx, "mica")
	if err != nil {
		return nil, err
	}
	n, err := node.Start(ctx, node.Options{
		Bin: bin, Name: s.slot.Name, State: s.slot.State, Data: filepath.Join(data, "root"),
		Subnet: s.slot.Subnet, Metrics: s.slot.Metrics, Mirror: s.registry.Addr, ConfDir: s.confDir,
	})
	if err != nil {
		return nil, err
	}
	p := &peer{name: "Mica", runtime: n.Runtime, images: n.Images, parent: n.CgroupParent(), logs: filepath.Join(s.work, "mica-logs")}
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
	p.stop = func(ctx context.Context) error { return errors.Join(n.Remove(ctx), removeCgroups(p.parent)) }
	return p, nil
}

// containerd is Debian's, as it comes, but for its directories.
type containerd struct {
	peer
	config, socket, log string
	daemon              *exec.Cmd
	ended               chan struct{}
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = %[2]q
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.test/pause:3.9"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %[3]q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[4]q
`

func startContainerd(ctx context.Context, s *stage) (*peer, error) {
	data, err := s.store(ctx, "cd")
	if err != nil {
		return nil, err
	}
	c := &containerd{
		config: filepath.Join(s.work, "containerd.toml"), socket: filepath.Join(s.work, "cd.sock"),
		log: filepath.Join(s.work, "containerd.log"),
	}
	content := fmt.Sprintf(containerdConfig, data, c.socket, s.confDir, s.certs)
	if err := os.WriteFile(c.config, []byte(content), 0o644); err != nil {
		return nil, err
	}
	c.peer = peer{
		name: "containerd", parent: "/" + s.slot.Name + "-cd", logs: filepath.Join(s.work, "cd-logs"),
		pids: c.processes, restart: c.kill, stop: c.remove,
	}
	if err := c.startDaemon(ctx); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return &c.peer, nil
}

func (c *containerd) startDaemon(ctx context.Context) error {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c.daemon = exec.Command("containerd", "--config", c.config)
	c.daemon.Stdout, c.daemon.Stderr = log, log
	c.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.daemon.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	c.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait()
	}(c.daemon, c.ended)
	for deadline := time.Now().Add(time.Minute); ; {
		if c.runtime, c.images, err = node.Dial(ctx, c.socket); err == nil {
			return nil
		}
		select {
		case <-c.ended:
			text, _ := os.ReadFile(c.log)
			return fmt.Errorf("containerd ended: %s", text)
		case <-time.After(5 * time.Millisecond):
			if time.Now().After(deadline) {
				return fmt.Errorf("containerd does not answer: %w", err)
			}
		}
	}
}

// processes are the daemon, the shims and the pause processes.
func (c *containerd) processes() ([]int, error) {
	pids := []int{c.daemon.Process.Pid}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid := 0
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			continue
		}
		arguments, _ := os.ReadFile(dir + "/cmdline")
		cgroups, _ := os.ReadFile(dir + "/cgroup")
		shim := strings.HasPrefix(filepath.Base(string(arguments)), "containerd-shim") || strings.Contains(string(arguments), "containerd-shim-runc")
		ours := strings.Contains(string(arguments), c.socket)
		pause := strings.HasPrefix(string(arguments), "/pause") && strings.Contains(string(cgroups), c.parent)
		if shim && ours || pause {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (c *containerd) kill(ctx context.Context) (time.Duration, error) {
	if err := c.endDaemon(syscall.SIGKILL); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := c.startDaemon(ctx); err != nil {
		return 0, err
	}
	_, err := c.runtime.ListPodSandbox(ctx, nil)
	return time.Since(begin), err
}

func (c *containerd) endDaemon(signal syscall.Signal) error {
	if c.runtime != nil {
		_, _ = c.runtime.Close(context.Background()), c.images.Close(context.Background())
		c.runtime, c.images = nil, nil
	}
	if err := c.daemon.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("containerd did not end")
	}
}

// remove removes its pods and ends the daemon.
func (c *containerd) remove(ctx context.Context) error {
	if c.daemon == nil || c.daemon.Process == nil {
		return nil
	}
	var errs []error
	if c.runtime != nil {
		pods, err := c.runtime.ListPodSandbox(ctx, nil)
		errs = append(errs, err)
		for _, pod := range pods {
			errs = append(errs, c.runtime.StopPodSandbox(ctx, pod.Id), c.runtime.RemovePodSandbox(ctx, pod.Id))
		}
	}
	errs = append(errs, c.endDaemon(syscall.SIGTERM))
	return errors.Join(append(errs, removeCgroups(c.parent))...)
}

// removeCgroups removes the cgroups of pods, which a kubelet would own.
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

// startPod runs one pod with one container that sleeps.
func (p *peer) startPod(ctx context.Context) (pod, container string, err error) {
	p.serial++
	name := fmt.Sprintf("bench-%d", p.serial)
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		Hostname: name, LogDirectory: filepath.Join(p.logs, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: p.parent + "/" + name},
	}
	if pod, err = p.runtime.RunPodSandbox(ctx, config, ""); err != nil {
		return "", "", fmt.Errorf("run pod: %w", err)
	}
	container, err = p.runtime.CreateContainer(ctx, pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "sleep"},
		Image:    &runtimeapi.ImageSpec{Image: workload},
		Command:  []string{"sleep", "100000"},
		LogPath:  "sleep.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}, config)
	if err != nil {
		return "", "", fmt.Errorf("create container: %w", err)
	}
	if err := p.runtime.StartContainer(ctx, container); err != nil {
		return "", "", fmt.Errorf("start container: %w", err)
	}
	return pod, container, nil
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
