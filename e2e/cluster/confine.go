package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hierarchies returns the mount points of the machine's cgroup v1 hierarchies.
func hierarchies() ([]string, error) {
	files, err := filepath.Glob("/sys/fs/cgroup/*/tasks")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("find cgroup hierarchies: the machine has no cgroup v1, which confined nodes need")
	}
	var dirs []string
	for _, file := range files {
		dirs = append(dirs, filepath.Dir(file))
	}
	return dirs, nil
}

// newConfinedHost is newHost with a cgroup namespace, whose root is the cgroup called name in each
// hierarchy. A kubelet there may use the whole tree and move the processes in its root, as on a
// whole machine.
func newConfinedHost(ctx context.Context, name string) (*host, error) {
	dirs, err := hierarchies()
	if err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	for _, dir := range dirs {
		if err := makeCgroup(dir, name); err != nil {
			return nil, fmt.Errorf("make namespaces: %w", err)
		}
	}
	// The root of a cgroup namespace is the cgroup of the process that creates it.
	const script = `
		name=$1
		shift
		for dir in "$@"; do echo $$ >"$dir/$name/cgroup.procs"; done
		exec unshare --cgroup -- sleep infinity
	`
	keeper := exec.Command("sh", append([]string{"-ec", script, "sh", name}, dirs...)...)
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	h, err := startHost(ctx, keeper)
	if err != nil {
		return nil, err
	}
	if err := h.mountCgroups(ctx, dirs); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespaces: %w", err), h.destroy(ctx))
	}
	h.Confined = true
	return h, nil
}

// makeCgroup makes a cgroup that can contain processes.
func makeCgroup(hierarchy, name string) error {
	dir := filepath.Join(hierarchy, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(hierarchy, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// mountCgroups remounts the hierarchies, so that the mounts show the namespace's root.
func (h *host) mountCgroups(ctx context.Context, dirs []string) error {
	err := Await(ctx, "cgroup namespace", func(context.Context) error {
		own, err := os.Readlink("/proc/self/ns/cgroup")
		if err != nil {
			return err
		}
		other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", h.Keeper))
		if err == nil && other == own {
			err = errors.New("it does not exist yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	const script = `
		for dir in "$@"; do
			controllers=$(findmnt -no FS-OPTIONS "$dir")
			umount "$dir"
			mount -t cgroup -o "${controllers#rw,}" cgroup "$dir"
		done
	`
	line := append(append(h.enter(), "nsenter", fmt.Sprintf("--cgroup=/proc/%d/ns/cgroup", h.Keeper), "--", "sh", "-ec", script, "sh"), dirs...)
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("mount cgroups: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
