package podns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// Names of the pins in a pod's directory, which are also the names of the namespaces in
// /proc/<pid>/ns.
const (
	Net  = "net"
	IPC  = "ipc"
	UTS  = "uts"
	PID  = "pid"
	User = "user"
)

// Args describes the namespaces to make for a pod.
type Args struct {
	// Dir is the pod's directory. Pin makes it if it does not exist.
	Dir string
	// User, if not nil, requests a new user namespace. It owns the other new namespaces, and so
	// their sysctls and interfaces.
	User *UserNS
	// Net, IPC and UTS request a new namespace of that kind. For the others the pod uses the node's
	// namespace, and there is no pin.
	Net, IPC, UTS bool
	// Hostname is set in the new UTS namespace; "" keeps the node's name.
	Hostname string
	// Sysctls are set in the new namespaces. Names may use dots or slashes; white space around
	// values is removed. See [CheckSysctls] for those that are allowed and [SetInterfaceSysctls]
	// for those that Pin does not set.
	Sysctls map[string]string
}

// UserNS describes a user namespace.
type UserNS struct {
	// UIDs and GIDs are its mappings. Both must map ID 0.
	UIDs, GIDs []syscall.SysProcIDMap
	// Holder is the command line of a program that waits for the end of its stdin. Pin starts it to
	// make the namespaces, since a process with threads cannot make user namespaces.
	Holder []string
}

// Pin makes the namespaces of args, pins them, sets host name and sysctls, and brings the loopback
// interface up. It returns errdefs.ErrAlreadyExists if a pin exists; a plain file that a crash left
// in its place is no error. It returns errdefs.ErrInvalidArgument for sysctls that are not allowed
// and errdefs.ErrFailedPrecondition for those that the kernel lacks. After an error none of the
// pins of args is left.
//
// Pin takes about a millisecond, and longer with the child process for a user namespace. It blocks
// only while the kernel makes the namespaces. It checks ctx only once, at the start.
func Pin(ctx context.Context, args Args) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sysctls, err := parseSysctls(args.Sysctls, args)
	if err != nil {
		return err
	}
	names := args.names()
	if len(names) == 0 {
		return nil
	}
	if err := os.MkdirAll(args.Dir, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if err := touch(filepath.Join(args.Dir, name)); err != nil {
			return fmt.Errorf("pin %s namespace: %w", name, err)
		}
	}
	if args.User != nil {
		err = args.makeOwned(names, sysctls)
	} else {
		err = osthread.Run(func() error { return args.enter(names, sysctls) })
	}
	if err != nil {
		return errors.Join(err, unpin(args.Dir, names))
	}
	return nil
}

func (a Args) names() []string {
	var names []string
	for _, kind := range []struct {
		name string
		want bool
	}{{User, a.User != nil}, {Net, a.Net}, {IPC, a.IPC}, {UTS, a.UTS}} {
		if kind.want {
			names = append(names, kind.name)
		}
	}
	return names
}

func (a Args) flags() int {
	flags := 0
	if a.Net {
		flags |= unix.CLONE_NEWNET
	}
	if a.IPC {
		flags |= unix.CLONE_NEWIPC
	}
	if a.UTS {
		flags |= unix.CLONE_NEWUTS
	}
	return flags
}

// enter moves the calling thread into new namespaces, sets them up, and pins them last. Therefore a
// pinned namespace is always ready.
func (a Args) enter(names []string, sysctls []sysctl) error {
	if err := unix.Unshare(a.flags()); err != nil {
		return fmt.Errorf("make namespaces %v: %w", names, err)
	}
	if err := a.setUp(sysctls); err != nil {
		return err
	}
	return a.pin(names, fmt.Sprintf("/proc/self/task/%d/ns", unix.Gettid()))
}

// setUp prepares the namespaces of args, which the calling thread has entered.
func (a Args) setUp(sysctls []sysctl) error {
	if a.Net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring loopback up: %w", err)
		}
	}
	if a.UTS && a.Hostname != "" {
		if err := unix.Sethostname([]byte(a.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", a.Hostname, err)
		}
	}
	for _, s := range sysctls {
		if s.ofInterface() {
			continue // SetInterfaceSysctls sets it once the interface exists
		}
		if err := s.set(); err != nil {
			return err
		}
	}
	return nil
}

// pin pins the namespaces whose files are in directory from.
func (a Args) pin(names []string, from string) error {
	for _, name := range names {
		if err := unix.Mount(filepath.Join(from, name), filepath.Join(a.Dir, name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: %w", name, err)
		}
	}
	return nil
}

// loopbackUp brings up the loopback interface of the calling thread's network namespace. Its index
// is always 1.
func loopbackUp() error {
	return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
}
