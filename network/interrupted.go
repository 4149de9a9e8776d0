package network

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/sleep"
)

// markVariable is set in the environment of every plugin and is inherited by its children. Its
// value is the network's cache directory. By it, a new daemon finds plugins that a killed daemon
// left running.
const markVariable = "MICA_CNI_CACHE_DIR"

// interrupted is a plugin process that an earlier daemon started.
type interrupted struct {
	pid     int
	command string // CNI_COMMAND
	netNS   string
}

// leftPlugins returns the plugin processes of this network by pod ID. It is called once, before
// this daemon runs a plugin for a pod of an earlier one.
func (n *Network) leftPlugins() map[string][]interrupted {
	dirs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	left := map[string][]interrupted{}
	for _, path := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		env := pluginEnvironment(pid)
		if id := env["CNI_CONTAINERID"]; id != "" && env[markVariable] == n.opts.CacheDir {
			left[id] = append(left[id], interrupted{pid, env["CNI_COMMAND"], env["CNI_NETNS"]})
		}
	}
	return left
}

// pluginEnvironment returns the environment of a plugin process. It is empty for other processes,
// for one that has exited, and for a zombie.
func pluginEnvironment(pid int) map[string]string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !bytes.Contains(data, []byte(markVariable+"=")) {
		return nil
	}
	env := map[string]string{}
	for kv := range bytes.SplitSeq(data, []byte{0}) {
		if name, value, ok := bytes.Cut(kv, []byte("=")); ok {
			env[string(name)] = string(value)
		}
	}
	return env
}

// endInterrupted kills plugin processes that an earlier daemon left for the pod, so that none of
// them runs concurrently with DEL. If the pod's ADD completed, processes of the ADD stay: a plugin
// may have left a helper on purpose.
func (n *Network) endInterrupted(ctx context.Context, rec record) error {
	n.leftOnce.Do(func() { n.left = n.leftPlugins() })
	for _, p := range n.left[rec.PodID] {
		if p.command == "ADD" && n.attached(rec) {
			continue
		}
		klog.FromContext(ctx).Info("Killing a plugin that an earlier daemon left", "pid", p.pid, "command", p.command, "pod", rec.String())
		if err := n.endProcess(ctx, rec.PodID, p.pid); err != nil {
			return fmt.Errorf("kill plugin process %d of an earlier daemon: %w", p.pid, err)
		}
	}
	return nil
}

// endProcess kills the process, if it still is the pod's plugin, and waits for its exit.
func (n *Network) endProcess(ctx context.Context, id string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	is := func() bool {
		env := pluginEnvironment(pid)
		return env["CNI_CONTAINERID"] == id && env[markVariable] == n.opts.CacheDir
	}
	for is() {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return err
		}
		if err := sleep.For(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
