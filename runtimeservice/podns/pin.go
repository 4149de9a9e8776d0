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
)

// Names of the pins in a pod's directory. They are also the names of the
// namespaces in /proc/<pid>/ns.
const (
	Net  = "net"
	IPC  = "ipc"
	UTS  = "uts"
	PID  = "pid"
	User = "user"
)

// Args says which namespaces a pod gets of its own.
type Args struct {
	// Dir is the pod's directory. Pin makes it if it is not there.
	Dir string
	// User, if not nil, asks for a new user namespace, which then owns the
	// others, and thereby their sysctls and interfaces.
	User *UserNS
	// Net, IPC and UTS ask for a new namespace of that kind; the others stay
	// those of the node and get no pin.
	Net, IPC, UTS bool
	// Hostname is set in the new UTS namespace; "" keeps the node's name.
	Hostname string
	// Sysctls are set inside, names with dots or slashes, values without the
	// white space around them. See [CheckSysctls] for those that are allowed,
	// and [SetInterfaceSysctls] for those that Pin leaves out.
	Sysctls map[string]string
}

// UserNS describes a user namespace.
type UserNS struct {
	// UIDs and GIDs are its mappings; both must map the ID 0.
	UIDs, GIDs []syscall.SysProcIDMap
	// Holder is a program, with its arguments, that does nothing until the end
	// of its stdin. The namespaces are made with it, since a process with
	// threads cannot make user namespaces.
	Holder []string
}

// Pin makes the namespaces of args, pins them, sets host name and sysctls, and
// brings the loopback interface up. A pin that is already there is an error
// (errdefs.ErrAlreadyExists); a plain file left in its place by a crash is not.
// After an error none of the pins of args is left.
//
// It takes about a millisecond, and some more for the child process that a user
// namespace needs, and does not block, except while the kernel makes the
// namespaces; ctx is looked at once, before the start.
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
		err = onThread(func() error { return args.enter(names, sysctls) })
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

// enter moves the calling thread into new namespaces, sets them up, and pins
// them last, so that a pin that exists is a namespace that is ready.
func (a Args) enter(names []string, sysctls []sysctl) error {
	if err := unix.Unshare(a.flags()); err != nil {
		return fmt.Errorf("make namespaces %v: %w", names, err)
	}
	if err := a.setUp(sysctls); err != nil {
		return err
	}
	return a.pin(names, fmt.Sprintf("/proc/self/task/%d/ns", unix.Gettid()))
}

// setUp prepares the namespaces of args, which the calling thread is in.
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
			continue // which comes later
		}
		if err := s.set(); err != nil {
			return err
		}
	}
	return nil
}

// pin pins the namespaces whose files are in the directory from.
func (a Args) pin(names []string, from string) error {
	for _, name := range names {
		if err := unix.Mount(filepath.Join(from, name), filepath.Join(a.Dir, name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: %w", name, err)
		}
	}
	return nil
}

// loopbackUp brings up the loopback interface of the calling thread's network
// namespace, where it always has index 1.
func loopbackUp() error {
	return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
}
