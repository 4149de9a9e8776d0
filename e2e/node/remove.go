package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/patience"
)

// Remove stops the node with the product's own commands. It returns an error for each leftover, and
// removes leftovers and directories by force. It works on a node in any state, also on one that
// another process started.
func (n *Node) Remove(ctx context.Context) error {
	var errs []error
	keepers := n.keeperCgroups()
	if n.pid != 0 {
		n.disconnect(ctx)
		_, err := n.Mica(ctx, "stop", "--all")
		errs = append(errs, err)
	}
	// Both have exited already, unless the stop failed.
	errs = append(errs, n.StopDaemon(), n.endKeeper())
	left, err := n.Census(ctx)
	errs = append(errs, err)
	for _, kind := range []string{"process", "mount", "cgroup", "link", "lease", "rule"} {
		for _, item := range left[kind] {
			errs = append(errs, fmt.Errorf("left behind: %s %s", kind, item))
		}
	}
	for _, dir := range keepers {
		if _, err := os.Stat(dir); err == nil {
			errs = append(errs, fmt.Errorf("left behind: the keeper's cgroup %s", dir), os.Remove(dir))
		}
	}
	errs = append(errs, n.wipe(ctx, left))
	return errors.Join(errs...)
}

// keeperCgroups returns the directories of the cgroups that the keeper made for itself.
func (n *Node) keeperCgroups() []string {
	pid, err := n.KeeperPid()
	if err != nil || pid == 0 {
		return nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		_, path, _ := strings.Cut(strings.TrimSpace(line), ":/")
		if strings.HasPrefix(path, "mica-keeper-") {
			found, _ := filepath.Glob("/sys/fs/cgroup/*/" + path)
			dirs = append(dirs, found...)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// endKeeper ends the keeper and its remaining containers.
func (n *Node) endKeeper() error {
	pid, err := n.KeeperPid()
	if err != nil || pid == 0 {
		return err
	}
	return endProcess(pid)
}

// endProcess ends a process with SIGTERM. If that takes too long, it sends SIGKILL.
func endProcess(pid int) error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d: %w", pid, err)
		}
		for deadline := time.Now().Add(patience.Of(killTimeout)); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if !alive(pid) {
				return nil
			}
		}
	}
	return fmt.Errorf("end process %d: still exists after SIGKILL", pid)
}

// wipe removes leftovers by force, deepest first.
func (n *Node) wipe(ctx context.Context, left Census) error {
	for _, cgroup := range left["cgroup"] {
		if state := filepath.Join(cgroup, "freezer.state"); strings.Contains(cgroup, "/freezer/") {
			_ = os.WriteFile(state, []byte("THAWED"), 0) // a frozen process does not end
		}
	}
	for _, item := range left["process"] {
		pid := 0
		if _, err := fmt.Sscan(item, &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	for _, mount := range slices.Backward(left["mount"]) {
		_ = n.command(ctx, "umount", "--lazy", mount).Run()
	}
	for _, cgroup := range slices.Backward(left["cgroup"]) {
		removeCgroup(cgroup)
	}
	for _, root := range n.cgroupRoots() {
		removeCgroup(root)
	}
	// The directory exists only if the daemon did not remove it.
	_ = n.command(ctx, "ip", "link", "delete", n.Name).Run()
	var errs []error
	for _, dir := range []string{n.State, n.Data} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// removeCgroup waits for the exit of the cgroup's killed processes.
func removeCgroup(dir string) {
	for deadline := time.Now().Add(patience.Of(killTimeout)); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if !errors.Is(unix.Rmdir(dir), unix.EBUSY) {
			return
		}
	}
}

// cgroupRoots returns the directories, one in each hierarchy, below which the node's pods are.
func (n *Node) cgroupRoots() []string {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + n.CgroupParent()) // the pattern is valid
	return roots
}

// RemovePortChains removes the chains that the portmap plugin makes once for all pods of the
// machine, unless a pod still uses them.
func RemovePortChains(ctx context.Context) error {
	for _, tool := range []string{"iptables", "ip6tables"} {
		out, err := exec.CommandContext(ctx, tool+"-save", "-t", "nat").Output()
		if err != nil || !strings.Contains(string(out), ":CNI-HOSTPORT-") || strings.Contains(string(out), ":CNI-DN-") {
			continue // none, or in use
		}
		var chains, jumps []string
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if rest, ok := strings.CutPrefix(line, ":CNI-HOSTPORT-"); ok {
				name, _, _ := strings.Cut(rest, " ")
				chains = append(chains, "CNI-HOSTPORT-"+name)
			} else if rest, ok := strings.CutPrefix(line, "-A "); ok && strings.Contains(line, "-j CNI-HOSTPORT-") {
				jumps = append(jumps, "-D "+rest)
			}
		}
		script := []string{"*nat"}
		script = append(script, jumps...)
		for _, verb := range []string{"-F ", "-X "} {
			for _, chain := range chains {
				script = append(script, verb+chain)
			}
		}
		restore := exec.CommandContext(ctx, tool+"-restore", "--noflush")
		restore.Stdin = strings.NewReader(strings.Join(append(script, "COMMIT", ""), "\n"))
		if text, err := restore.CombinedOutput(); err != nil {
			return fmt.Errorf("remove port chains: %w: %s", err, text)
		}
	}
	return nil
}
