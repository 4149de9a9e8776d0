package podns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// makeOwned makes a user namespace and the namespaces that it owns. It starts a child process in
// all of them and pins them; then the child ends. If this process dies first, the child sees the
// end of its stdin and exits.
func (a Args) makeOwned(names []string, sysctls []sysctl) (err error) {
	root, err := a.User.root()
	if err != nil {
		return err
	}
	holder := exec.Command(a.User.Holder[0], a.User.Holder[1:]...)
	holder.Env, holder.Dir = []string{}, "/"
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  uintptr(unix.CLONE_NEWUSER | a.flags()),
		UidMappings: a.User.UIDs, GidMappings: a.User.GIDs,
		GidMappingsEnableSetgroups: true,
	}
	stdin, err := holder.StdinPipe()
	if err != nil {
		return fmt.Errorf("make namespaces %v: %w", names, err)
	}
	if err := holder.Start(); err != nil {
		return fmt.Errorf("make namespaces %v: %w", names, err)
	}
	defer func() { err = errors.Join(err, stdin.Close(), ended(holder)) }()
	from := fmt.Sprintf("/proc/%d/ns", holder.Process.Pid)
	err = osthread.Run(func() error {
		if err := a.join(from, root); err != nil {
			return err
		}
		return a.setUp(sysctls)
	})
	if err != nil {
		return err
	}
	return a.pin(names, from)
}

// ended waits for the holder to exit.
func ended(holder *exec.Cmd) error {
	if err := holder.Wait(); err != nil {
		return fmt.Errorf("hold new namespaces: %w", err)
	}
	return nil
}

// root returns the ID outside the namespace that UID 0 inside maps to.
func (u *UserNS) root() (int, error) {
	if len(u.Holder) == 0 {
		return 0, fmt.Errorf("make user namespace: no holder: %w", errdefs.ErrInvalidArgument)
	}
	for _, m := range u.UIDs {
		if m.ContainerID == 0 && m.Size > 0 {
			return m.HostID, nil
		}
	}
	return 0, fmt.Errorf("make user namespace: user 0 is not mapped: %w", errdefs.ErrInvalidArgument)
}

// join moves the calling thread into the namespaces of args whose files are in directory from,
// except the user namespace, which a process with threads cannot enter. The thread keeps all
// capabilities and takes the UID of the user namespace's root, since some sysctls check only the
// UID (ipc_permissions in ipc/ipc_sysctl.c, Linux 6.1).
func (a Args) join(from string, root int) error {
	for name, want := range map[string]bool{Net: a.Net, IPC: a.IPC, UTS: a.UTS} {
		if !want {
			continue
		}
		fd, err := unix.Open(filepath.Join(from, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: filepath.Join(from, name), Err: err}
		}
		err = unix.Setns(fd, 0)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter new %s namespace: %w", name, err)
		}
	}
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP of linux/securebits.h
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// The raw system call changes only the calling thread.
	keep := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(root), keep); errno != 0 {
		return fmt.Errorf("become root of the user namespace: %w", errno)
	}
	return nil
}
