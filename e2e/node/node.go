// Package node runs one Mica node from built binaries, with separate directories, bridge and
// cgroups, and sends it CRI calls as a kubelet would.
//
// It uses only the product's external interfaces: the configuration file, the socket, the processes
// and their files. Tests, the benchmark and `make run` start their nodes with it. Several nodes may
// run at the same time.
//
// A Node must not be used concurrently, except for its clients.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/micarun/mica/internal/patience"
)

// Options of a node. Bin, Name, State and Data are required.
type Options struct {
	// Bin is the directory of the built binaries.
	Bin string
	// Name is unique on the machine, at most 15 bytes. The node's bridge, cgroups and network have
	// this name.
	Name string
	// State is the state directory. Its path must be short, because it contains sockets.
	State string
	// Data is the data root.
	Data string
	// Subnet of the pods. No other node of the machine may use it.
	Subnet netip.Prefix
	// Mirror is the address of a registry that serves the images of all registries, such as
	// 127.0.0.1:5000. Empty: no mirror.
	Mirror string
	// OCIRuntime is the OCI runtime for pods, crun or runc. Empty: the daemon chooses one that can
	// run a container here.
	OCIRuntime string
	// CgroupDriver is systemd or cgroupfs, which is the default.
	CgroupDriver string
	// ConfDir is a directory of network configurations to use instead of the embedded network.
	ConfDir string
	// Criu is the CRIU to use instead of the one in PATH.
	Criu string
	// ExecByRuntime makes the OCI runtime start every exec.
	ExecByRuntime bool
	// RestoreImages lets the node restore containers from images.
	RestoreImages bool
	// Env are additional environment variables for the daemon.
	Env []string
	// Enter is a command line that runs the command line after it in the node's namespaces, with
	// the same process ID: nsenter and its flags. Empty: this process's namespaces. State and Data
	// must be the same directories inside and outside.
	Enter []string
	// Metrics is the address of the daemon's metrics. Default: a free one.
	Metrics string
	// Dial connects to Metrics. Default: a plain TCP connection.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log is the file to which the daemon's log is appended. Default: daemon.log in Data.
	Log string
}

// Node is a running node.
type Node struct {
	Options
	// Runtime and Images are CRI clients of the current daemon. They are replaced at every start.
	Runtime internalapi.RuntimeService
	Images  internalapi.ImageManagerService

	pid   int           // the daemon's process ID, 0 if none runs
	ended chan struct{} // closed when the daemon has exited
}

const (
	startTimeout = time.Minute
	stopTimeout  = time.Minute
	callTimeout  = 2 * time.Minute
	killTimeout  = 5 * time.Second
)

// Start writes the configuration, starts the daemon and returns when it answers. It continues an
// earlier node with the same directories.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := newNode(o)
	for _, dir := range []string{o.State, o.Data} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("start node %s: %w", o.Name, err)
		}
	}
	if n.Metrics == "" {
		address, err := freeAddress()
		if err != nil {
			return nil, fmt.Errorf("start node %s: %w", o.Name, err)
		}
		n.Metrics = address
	}
	if err := n.writeConfig(); err != nil {
		return nil, fmt.Errorf("start node %s: %w", o.Name, err)
	}
	if _, err := n.StartDaemon(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start node %s: %w", o.Name, err), n.endKeeper())
	}
	return n, nil
}

// Adopt returns the node that another process started with the same options. Its daemon need not
// run.
func Adopt(ctx context.Context, o Options) (*Node, error) {
	n := newNode(o)
	all, err := processes()
	if err != nil {
		return nil, fmt.Errorf("adopt node %s: %w", o.Name, err)
	}
	for _, p := range all {
		if filepath.Base(p.arguments[0]) == "micad" && slices.Contains(p.arguments, n.Config()) {
			n.pid = p.pid
		}
	}
	if n.pid == 0 {
		return n, nil
	}
	if n.ended, err = endOf(n.pid); err != nil {
		return nil, fmt.Errorf("adopt node %s: %w", o.Name, err)
	}
	if err := n.connect(ctx); err != nil {
		return nil, fmt.Errorf("adopt node %s: %w", o.Name, err)
	}
	return n, nil
}

// endOf returns a channel that is closed when the process exits.
func endOf(pid int) (chan struct{}, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return ended, nil
}

func newNode(o Options) *Node {
	if o.Log == "" {
		o.Log = filepath.Join(o.Data, "daemon.log")
	}
	return &Node{Options: o}
}

// StartDaemon starts the daemon and returns how long it took to answer.
func (n *Node) StartDaemon(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("open daemon log: %w", err)
	}
	defer log.Close()
	daemon := n.command(context.Background(), filepath.Join(n.Bin, "micad"), "--config", n.Config()) //nolint:contextcheck // the daemon outlives the call
	daemon.Env = append(os.Environ(), n.Env...)
	daemon.Stdout, daemon.Stderr = log, log
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begin := time.Now()
	if err := daemon.Start(); err != nil {
		return 0, fmt.Errorf("start daemon: %w", err)
	}
	n.pid, n.ended = daemon.Process.Pid, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		_ = daemon.Wait() // the log shows why it ended
	}(n.ended)
	if err := n.connect(ctx); err != nil {
		return 0, errors.Join(err, n.Kill())
	}
	return time.Since(begin), nil
}

// connect waits until the daemon answers and makes the clients.
func (n *Node) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience.Of(startTimeout))
	defer cancel()
	for {
		err := n.dial(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-n.ended:
			return fmt.Errorf("daemon ended at its start: %s", n.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("daemon does not answer: %w: %s", err, n.LogTail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (n *Node) dial(ctx context.Context) error {
	// A client keeps its connection when the first call fails. The connection would reach the next
	// daemon and be counted as a leak, so a separate connection is tried first.
	if err := answers(ctx, n.Socket()); err != nil {
		return err
	}
	var err error
	n.Runtime, n.Images, err = Dial(ctx, n.Socket())
	return err
}

// answers returns an error unless a daemon answers calls on the socket. A killed daemon leaves its
// socket file, and one that starts accepts connections before it answers.
func answers(ctx context.Context, socket string) error {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	_, err = runtimeapi.NewRuntimeServiceClient(connection).Version(ctx, &runtimeapi.VersionRequest{})
	return errors.Join(err, connection.Close())
}

// Dial makes clients of the CRI socket.
func Dial(ctx context.Context, socket string) (internalapi.RuntimeService, internalapi.ImageManagerService, error) {
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).
		WithConnectionTimeout(patience.Of(callTimeout)).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to runtime service: %w", err)
	}
	images, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + socket).
		WithConnectionTimeout(patience.Of(callTimeout)).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect to image service: %w", err), runtime.Close(ctx))
	}
	return runtime, images, nil
}

// DialStreaming makes a client that lists by the streaming calls, like the kubelet with its feature
// CRIListStreaming.
func DialStreaming(ctx context.Context, socket string) (internalapi.RuntimeService, error) {
	runtime, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).WithUseStreaming(true).
		WithConnectionTimeout(callTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to runtime service: %w", err)
	}
	return runtime, nil
}

// Reconnect makes new clients, which ends the streams of the old ones.
func (n *Node) Reconnect(ctx context.Context) error {
	n.disconnect(ctx)
	return n.connect(ctx)
}

// disconnect closes the clients.
func (n *Node) disconnect(ctx context.Context) {
	if n.Runtime == nil {
		return
	}
	// Errors of closing a dead daemon's clients do not matter.
	_ = n.Runtime.Close(ctx)
	_ = n.Images.Close(ctx)
	n.Runtime, n.Images = nil, nil
}

// Kill ends the daemon with SIGKILL and waits until it has exited. Containers keep running.
func (n *Node) Kill() error { return n.endDaemon(syscall.SIGKILL) }

// StopDaemon sends SIGTERM to the daemon and waits until it has exited. Containers keep running.
func (n *Node) StopDaemon() error { return n.endDaemon(syscall.SIGTERM) }

//nolint:contextcheck // the clients are closed also after the end of the context
func (n *Node) endDaemon(signal syscall.Signal) error {
	if n.pid == 0 {
		return nil
	}
	n.disconnect(context.Background())
	return n.signalDaemon(signal)
}

// signalDaemon sends a signal to the daemon and waits until it has exited.
func (n *Node) signalDaemon(signal syscall.Signal) error {
	if err := unix.Kill(n.pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal daemon: %w", err)
	}
	select {
	case <-n.ended:
		n.pid = 0
		return nil
	case <-time.After(patience.Of(stopTimeout)):
		return fmt.Errorf("daemon %d did not end %s after %s", n.pid, patience.Of(stopTimeout), signal)
	}
}

// DumpGoroutines ends the daemon with SIGQUIT and returns the stacks of its goroutines. Containers
// keep running.
//
//nolint:contextcheck // the clients are closed also after the end of the context
func (n *Node) DumpGoroutines() (string, error) {
	if err := n.signalDaemon(syscall.SIGQUIT); err != nil {
		return "", err
	}
	n.disconnect(context.Background())
	return n.LogTail(2000), nil
}

// Empty removes every pod, with its containers.
func (n *Node) Empty(ctx context.Context) error {
	pods, err := n.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, pod := range pods {
		errs = append(errs, n.RemovePod(ctx, pod.Id))
	}
	return errors.Join(errs...)
}

// RemovePod stops and removes the pod.
func (n *Node) RemovePod(ctx context.Context, id string) error {
	if err := n.Runtime.StopPodSandbox(ctx, id); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if err := n.Runtime.RemovePodSandbox(ctx, id); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// RemoveImages removes every image.
func (n *Node) RemoveImages(ctx context.Context) error {
	list, err := n.Images.ListImages(ctx, nil)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var errs []error
	for _, image := range list {
		errs = append(errs, n.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: image.Id}))
	}
	return errors.Join(errs...)
}

// Socket is the path of the CRI socket.
func (n *Node) Socket() string { return filepath.Join(n.State, "mica.sock") }

// Config is the path of the configuration file.
func (n *Node) Config() string { return filepath.Join(n.Data, "config.toml") }

// Pid returns the daemon's process ID, 0 if none runs.
func (n *Node) Pid() int { return n.pid }

// Mica runs the node tool with the node's configuration.
func (n *Node) Mica(ctx context.Context, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience.Of(callTimeout))
	defer cancel()
	arguments = append([]string{"--config", n.Config()}, arguments...)
	out, err := n.command(ctx, filepath.Join(n.Bin, "mica"), arguments...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("run mica %s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return string(out), nil
}

// command prepares a command in the node's namespaces.
func (n *Node) command(ctx context.Context, name string, arguments ...string) *exec.Cmd {
	line := slices.Concat(n.Enter, []string{name}, arguments)
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

// LogTail returns the last lines of the daemon's log.
func (n *Node) LogTail(lines int) string {
	file, err := os.Open(n.Log)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > 512<<10 {
		_, _ = file.Seek(-512<<10, io.SeekEnd)
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
