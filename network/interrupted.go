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
)

// markVariable is in the environment of every plugin, and of what the plugin starts: the
// cache directory of the network that runs it. By it the next start finds the plugins that
// a killed daemon has left.
const markVariable = "MICA_CNI_CACHE_DIR"

// interrupted is a process of a plugin that an earlier daemon started.
type interrupted struct {
	pid     int
	command string // of CNI
	netNS   string
}

// leftPlugins returns the processes of plugins that run for this network, by the ID of
// their pod. All of them began before Open: it is called once, before the first plugin that
// works for a pod of an earlier run.
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

// pluginEnvironment returns the variables of a process that tell what plugin it is of. It
// is empty for a process that is gone, and for a zombie.
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

// endInterrupted ends what is left of plugins that an earlier daemon ran for the pod, so
// that none of them works beside the DEL. A pod that was attached to the end keeps
// processes of its ADD: a plugin may have left a helper on purpose.
func (n *Network) endInterrupted(ctx context.Context, rec record) error {
	n.leftOnce.Do(func() { n.left = n.leftPlugins() })
	for _, p := range n.left[rec.PodID] {
		if p.command == "ADD" && n.attached(rec) {
			continue
		}
		klog.FromContext(ctx).Info("Killing a plugin that an earlier daemon left", "pid", p.pid, "command", p.command, "pod", rec.String())
		if err := n.endProcess(ctx, rec.PodID, p.pid); err != nil {
			return fmt.Errorf("end plugin of an earlier daemon, process %d: %w", p.pid, err)
		}
	}
	return nil
}

// endProcess kills the process, if it still is the plugin's, and waits until it is gone.
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
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
