// Package testcgroup runs programs in a mount namespace that shows only version 1 cgroups, on a
// host whose unified hierarchy has controllers as well. crun does not support such a hybrid host.
// Hiding the unified hierarchy in a mount namespace satisfies crun and does not affect the host.
//
// Code that inspects mounts, or mounts something for such a program, must run in the same
// namespace.
package testcgroup

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// script moves the version 1 hierarchies to a tmpfs in the namespace. Unmounting the unified
// hierarchy is not enough: its mount point would remain a plain directory on the host's tmpfs, in
// which crun would create directories as if they were cgroups.
const script = `
old=/sys/fs/cgroup
new=$(mktemp -d)
mount -t tmpfs -o mode=755 cgroup "$new"
for path in "$old"/*; do
	name=${path##*/}
	if [ -L "$path" ]; then
		cp -P "$path" "$new/"
	elif [ "$name" != unified ] && mountpoint -q "$path"; then
		mkdir "$new/$name"
		mount --move "$path" "$new/$name"
	fi
done
umount --recursive "$old"
mount --move "$new" "$old"
rmdir "$new"
exec "$@"
`

// Hybrid reports whether this host's unified hierarchy has controllers in addition to version 1
// hierarchies.
func Hybrid() bool {
	text, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	return err == nil && len(bytes.TrimSpace(text)) > 0
}

// Command returns the command line that runs args, which must not be empty, in an environment where
// Hybrid is false. That is a new mount namespace without the unified hierarchy, or, on a host that
// is not hybrid, args unchanged. Mounts do not propagate between the namespace and the host. The
// program replaces the setup processes by exec, so signals and the exit status are its own. Command
// needs root.
func Command(args ...string) []string {
	if !Hybrid() {
		return args
	}
	return append([]string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", script, "sh"}, args...)
}

// Enter re-executes this program by Command with the same arguments. It returns only on an error.
func Enter() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := Command(append([]string{self}, os.Args[1:]...)...)
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return fmt.Errorf("enter mount namespace: %w", syscall.Exec(path, args, os.Environ()))
}
