// Package testcgroup lets programs run where only version 1 cgroups are seen,
// on a host whose unified hierarchy has controllers as well. crun refuses such
// a hybrid host; a mount namespace without the unified hierarchy is enough for
// it, and leaves the host alone.
//
// Whoever looks at mounts or mounts something for a program in that namespace
// must be in it too.
package testcgroup

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// script moves the version 1 hierarchies to a tmpfs of the namespace's own. To
// unmount the unified one would not do: its mount point would stay, an ordinary
// directory of the host's tmpfs in which crun makes what it takes for cgroups.
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

// Hybrid reports whether the unified hierarchy of this host, beside version 1
// ones, has controllers.
func Hybrid() bool {
	text, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	return err == nil && len(bytes.TrimSpace(text)) > 0
}

// Command returns the command line that runs another one, which must not be
// empty, where Hybrid is false: in a new mount namespace without the unified
// hierarchy, or as it is where there is nothing to hide. No mount of the
// namespace reaches the host, and none of the host's the namespace. The program
// replaces those that set it up, so that signals and the exit status are its
// own. It needs root.
func Command(args ...string) []string {
	if !Hybrid() {
		return args
	}
	return append([]string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", script, "sh"}, args...)
}

// Enter starts this program anew, with the same arguments, by Command. It
// returns only an error. Where Hybrid is false there is nothing to enter.
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
