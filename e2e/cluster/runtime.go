package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/micarun/mica/e2e/containerd"
	"github.com/micarun/mica/e2e/node"
)

// startRuntime starts the node's container runtime: Mica, or the containerd of the cluster's
// options.
func (n *Node) startRuntime(ctx context.Context) error {
	if n.cluster.Containerd == "" {
		started, err := node.Start(ctx, n.Mica.Options)
		if err == nil {
			n.Mica = started
		}
		return err
	}
	certs := filepath.Join(n.Mica.Data, "certs.d")
	if err := errors.Join(
		os.MkdirAll(n.Mica.State, 0o711), node.WriteMirror(certs, registry),
		// The directory of containerd's shim sockets is the same for the whole machine.
		n.host.script(ctx, "mkdir -p /run/containerd; mount -t tmpfs -o size=16m containerd /run/containerd"),
	); err != nil {
		return err
	}
	var err error
	n.peer, err = containerd.Start(ctx, containerd.Options{
		Binary: n.cluster.Containerd, Data: filepath.Join(n.dir, "containerd"), Socket: n.socket(),
		ConfDir: n.Mica.ConfDir, Template: n.template(), Certs: certs, Parent: n.Mica.CgroupParent(),
		Enter: n.Mica.Enter, Log: n.Log("containerd"),
	})
	return err
}

// socket is the path of the container runtime's socket.
func (n *Node) socket() string {
	if n.cluster.Containerd != "" {
		return filepath.Join(n.Mica.State, "containerd.sock")
	}
	return n.Mica.Socket()
}

// removeRuntime ends the container runtime and removes everything of it.
func (n *Node) removeRuntime(ctx context.Context) error {
	if n.cluster.Containerd == "" {
		return n.removeMica(ctx)
	}
	if n.peer == nil {
		return nil // it was not started
	}
	return n.peer.Remove(ctx)
}

// removeMica ends Mica and removes everything of it.
func (n *Node) removeMica(ctx context.Context) error {
	if _, err := os.Stat(n.Mica.Config()); errors.Is(err, fs.ErrNotExist) {
		return nil // it was not started
	}
	var errs []error
	if n.Mica.Pid() != 0 {
		_, err := n.Mica.Mica(ctx, "check")
		errs = append(errs, err)
	}
	// The cgroups of pods and their classes belong to the kubelet, and the runtime's own to this
	// package.
	kubelets := regexp.MustCompile(`left behind: cgroup /sys/fs/cgroup/.*/(runtime|kubepods(/burstable|/besteffort)?(/pod[0-9a-f-]+)?)$`)
	for _, line := range lines(n.Mica.Remove(ctx)) {
		if !kubelets.MatchString(line) {
			errs = append(errs, errors.New(line))
		}
	}
	return errors.Join(errs...)
}

// lines splits a joined error.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

// RuntimeProcesses returns the container runtime's own processes.
func (n *Node) RuntimeProcesses() ([]int, error) {
	if n.peer != nil {
		return n.peer.Processes()
	}
	keeper, err := n.Mica.KeeperPid()
	return []int{n.Mica.Pid(), keeper}, err
}

// meter returns the directory of the container runtime's cgroup that counts processor time. Empty:
// the runtime has no separate cgroup.
func (n *Node) meter() string {
	if !n.cluster.Metered {
		return ""
	}
	for _, dir := range n.cgroups() {
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cpuacct.usage")); err == nil {
			return filepath.Join(dir, "runtime")
		}
	}
	return filepath.Join("/sys/fs/cgroup"+n.Mica.CgroupParent(), "runtime")
}

// enterMeter returns a command line that runs the command line after it in the container runtime's
// cgroup.
func (n *Node) enterMeter() []string {
	dir := n.meter()
	if dir == "" {
		return nil
	}
	const script = `echo $$ >"$1"; shift; exec "$@"`
	return []string{"sh", "-ec", script, "sh", filepath.Join(dir, "cgroup.procs")}
}

// CPU returns the processor time used by the container runtime and everything that it runs,
// including pods. The cluster must be metered.
func (n *Node) CPU() (time.Duration, error) {
	dirs := []string{filepath.Dir(n.meter())}
	if n.peer == nil {
		// Mica's keeper leaves the cgroup in which it is started.
		keeper, err := n.Mica.KeeperPid()
		if err != nil {
			return 0, err
		}
		dir, err := n.meterOf(keeper)
		if err != nil {
			return 0, err
		}
		dirs = append(dirs, dir)
	}
	var sum time.Duration
	for _, dir := range dirs {
		used, err := usage(dir)
		if err != nil {
			return 0, fmt.Errorf("read processor time: %w", err)
		}
		sum += used
	}
	return sum, nil
}

// meterOf returns the directory of a process's cgroup that counts processor time.
func (n *Node) meterOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("find cgroup: %w", err)
	}
	root := filepath.Dir(filepath.Dir(n.meter()))
	for line := range strings.Lines(string(text)) {
		// The format is number:controllers:path. The field controllers is empty in cgroup v2.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		v1 := filepath.Base(root) == fields[1] || strings.Contains(fields[1], "cpuacct")
		if v1 || fields[1] == "" && root == "/sys/fs/cgroup" {
			return filepath.Join(root, fields[2]), nil
		}
	}
	return "", fmt.Errorf("find cgroup of process %d: it has none with processor time", pid)
}

// usage returns the processor time of a cgroup and those below it.
func usage(dir string) (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
	if err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns), err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if text, err = os.ReadFile(filepath.Join(dir, "cpu.stat")); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s has no usage_usec", dir)
}
