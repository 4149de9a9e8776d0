// Package containerd runs a containerd for comparison in benchmarks. It has its default
// configuration except for directories, and can run in the namespaces of a node.
//
// The configuration has the format of the oldest supported version, which later versions accept
// too. A Daemon must not be used concurrently, except for its clients.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"

	"github.com/micarun/mica/e2e/node"
)

// Options of a daemon. All but Template and Enter are required.
type Options struct {
	// Binary is the daemon's name or path. A shim in the same directory is preferred to one in
	// PATH.
	Binary string
	// Data is the directory of all its files.
	Data string
	// Socket is the path of its CRI socket, which must be short.
	Socket string
	// ConfDir is the directory of network configurations. Template is the template of the
	// configuration that it writes when a kubelet sends the pods' subnet.
	ConfDir, Template string
	// Certs is the directory of registry configurations.
	Certs string
	// Parent is the parent cgroup of its pods.
	Parent string
	// Enter is a command line that runs the command line after it in the namespaces for the daemon,
	// with the same process ID. Empty: this process's namespaces.
	Enter []string
	// Log is the file that the daemon appends to.
	Log string
}

// Daemon is a running containerd.
type Daemon struct {
	Options
	// Runtime and Images are CRI clients of the current daemon.
	Runtime internalapi.RuntimeService
	Images  internalapi.ImageManagerService

	daemon *exec.Cmd
	ended  chan struct{} // closed when the daemon has exited
}

const (
	startTimeout = time.Minute
	stopTimeout  = 30 * time.Second
)

const configuration = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = %[2]q
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.nri.v1.nri"]
  plugin_path = "%[1]s/nri"
  plugin_config_path = "%[1]s/nri.conf.d"
  socket_path = "%[2]s.nri"
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
    conf_template = %[4]q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[5]q
`

// Start writes the configuration, starts the daemon and returns when it answers. If it fails, only
// files are left.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{Options: o}
	for _, dir := range []string{o.Data, o.ConfDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("start containerd: %w", err)
		}
	}
	text := fmt.Sprintf(configuration, o.Data, o.Socket, o.ConfDir, o.Template, o.Certs)
	if err := os.WriteFile(d.config(), []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *Daemon) config() string { return filepath.Join(d.Data, "containerd.toml") }

// StartDaemon starts the daemon again, and returns when it answers.
func (d *Daemon) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	defer log.Close()
	line := slices.Concat(d.Enter, []string{d.Binary, "--config", d.config()})
	d.daemon = exec.Command(line[0], line[1:]...)
	d.daemon.Stdout, d.daemon.Stderr = log, log
	if dir := filepath.Dir(d.Binary); dir != "." {
		d.daemon.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	}
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.daemon.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	d.ended = make(chan struct{})
	go func(daemon *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = daemon.Wait() // the log shows how it ended
	}(d.daemon, d.ended)
	if err := d.connect(ctx); err != nil {
		return errors.Join(err, d.End(syscall.SIGKILL))
	}
	return nil
}

// connect waits until the daemon answers, and makes the clients.
func (d *Daemon) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := d.dial(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.ended:
			text, _ := os.ReadFile(d.Log)
			return fmt.Errorf("containerd ended: %s", text)
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (d *Daemon) dial(ctx context.Context) error {
	// A killed daemon leaves its socket file.
	probe, err := net.Dial("unix", d.Socket)
	if err != nil {
		return err
	}
	if err := probe.Close(); err != nil {
		return err
	}
	d.Runtime, d.Images, err = node.Dial(ctx, d.Socket)
	return err
}

// Pid returns the daemon's process ID.
func (d *Daemon) Pid() int { return d.daemon.Process.Pid }

// Processes returns the daemon, the shims and the pause processes.
func (d *Daemon) Processes() ([]int, error) {
	pids := []int{d.Pid()}
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
		program, _, _ := strings.Cut(string(arguments), "\x00")
		shim := strings.HasPrefix(filepath.Base(program), "containerd-shim") && strings.Contains(string(arguments), d.Socket)
		pause := program == "/pause" && strings.Contains(string(cgroups), d.Parent+"/")
		if shim || pause {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// End sends a signal to the daemon and waits until it has exited. Containers keep running.
//
//nolint:contextcheck // the clients are closed also after the end of the context
func (d *Daemon) End(signal syscall.Signal) error {
	if d.Runtime != nil {
		// Errors of closing a dead daemon's clients do not matter.
		_, _ = d.Runtime.Close(context.Background()), d.Images.Close(context.Background())
		d.Runtime, d.Images = nil, nil
	}
	if err := d.daemon.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end containerd: %w", err)
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.New("end containerd: it does not exit")
	}
}

// Remove removes the daemon's pods and ends it.
func (d *Daemon) Remove(ctx context.Context) error {
	var errs []error
	if d.Runtime != nil {
		pods, err := d.Runtime.ListPodSandbox(ctx, nil)
		errs = append(errs, err)
		for _, pod := range pods {
			errs = append(errs, d.Runtime.StopPodSandbox(ctx, pod.Id), d.Runtime.RemovePodSandbox(ctx, pod.Id))
		}
	}
	return errors.Join(append(errs, d.End(syscall.SIGTERM))...)
}
