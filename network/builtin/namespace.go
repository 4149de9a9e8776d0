package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/osthread"
)

// namespace is an open network namespace.
type namespace struct{ file *os.File }

// openNamespace opens a pinned namespace. One that does not exist, or whose pin is a plain file
// after a reboot, is fs.ErrNotExist.
func openNamespace(path string) (namespace, error) {
	const nsfsMagic = 0x6e736673 // linux/magic.h
	f, err := os.Open(path)
	if err != nil {
		return namespace{}, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != nsfsMagic {
		_ = f.Close()
		return namespace{}, fmt.Errorf("open network namespace %s: not a namespace: %w", path, fs.ErrNotExist)
	}
	return namespace{f}, nil
}

func (n namespace) close() { _ = n.file.Close() }

func (n namespace) fd() int { return int(n.file.Fd()) }

// do runs f on a thread in the namespace, with a netlink socket there. Paths in /proc/sys/net
// resolve to the namespace.
func (n namespace) do(f func(*netlink.Handle) error) error {
	return osthread.Run(func() error {
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return withHandle(f)
	})
}

// withHandle opens a netlink socket in the thread's network namespace for f.
func withHandle(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	return f(h)
}

// notFound reports whether a look-up by LinkByName found no such link.
func notFound(err error) bool { return errors.As(err, &netlink.LinkNotFoundError{}) }

// retried repeats a dump that a concurrent change interrupted.
func retried[T any](dump func() ([]T, error)) (list []T, err error) {
	const attempts = 10
	for range attempts {
		list, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

func addresses(h *netlink.Handle, link netlink.Link, family int) ([]netlink.Addr, error) {
	list, err := retried(func() ([]netlink.Addr, error) { return h.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	return list, nil
}

// family returns the netlink constant of an address family.
func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// setSysctl writes a file below /proc/sys/net, if its value differs.
func setSysctl(name, value string) error {
	path := "/proc/sys/net/" + name
	old, err := os.ReadFile(path)
	if err == nil && string(old) == value+"\n" {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0o644)
	}
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// trySysctl sets a sysctl that does not exist without IPv6, or that is only an improvement.
func trySysctl(name, value string) { _ = setSysctl(name, value) }
