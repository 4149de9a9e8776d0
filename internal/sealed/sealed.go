// Package sealed protects a program of the host from processes of containers that can see it run.
//
// Such a process may open /proc/PID/exe and write to it once the program has ended (CVE-2019-5736).
// That must not be the program on the host, so a copy is run that no process can modify. The keeper
// uses this package, so it imports only the standard library and x/sys.
package sealed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Open opens a copy of the program that no process can modify, to be executed by its Path.
//
// The copy is a sealed memfd. Where sysctl vm.memfd_noexec=2 forbids executable memfds, it is the
// program's own file on a read-only mount.
func Open(program string) (*os.File, error) {
	f, err := memfd(program)
	if errors.Is(err, unix.EACCES) {
		f, err = readOnlyClone(program)
	}
	if err != nil {
		return nil, fmt.Errorf("protect program %s: %w", program, err)
	}
	return f, nil
}

// Path returns the path of an open file for execve. It is also valid in a child process, until the
// descriptor is closed on exec.
func Path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func memfd(program string) (*os.File, error) {
	from, err := os.Open(program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	name := filepath.Base(program)
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3, where every memfd is executable
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(f, from)
	if err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readOnlyClone opens the program on a detached read-only mount.
func readOnlyClone(program string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, program, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	f := os.NewFile(uintptr(fd), program)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(os.NewSyscallError("mount_setattr", err), f.Close())
	}
	return f, nil
}
