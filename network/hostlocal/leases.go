package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/sleep"
)

// DefaultDir is the data directory of configurations without dataDir.
const DefaultDir = "/var/lib/cni/networks"

// lockInterval is the interval of attempts to lock the leases. A holder needs a millisecond.
const lockInterval = time.Millisecond

// Leases is the directory with the leases of one network. Its methods may be called concurrently.
type Leases struct{ Dir string }

// Of returns the leases of a network below dataDir; "" means [DefaultDir].
func Of(dataDir, network string) Leases {
	if dataDir == "" {
		dataDir = DefaultDir
	}
	return Leases{filepath.Join(dataDir, network)}
}

// Path returns the lease file of an address.
func (l Leases) Path(ip netip.Addr) string { return filepath.Join(l.Dir, ip.String()) }

// Lock waits for the lock until ctx ends. A missing directory is fs.ErrNotExist.
func (l Leases) Lock(ctx context.Context) (unlock func(), err error) {
	if _, err := os.Stat(l.Dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(l.Dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o750) // the plugin's mode
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing unlocks
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, err
		}
		if err := sleep.For(ctx, lockInterval); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}

// lease is one lease file.
type lease struct {
	ip   netip.Addr
	path string
	// id is the container ID. key is the whole content: the ID, and the interface on a second line
	// that old versions of the plugin did not write.
	id, key string
}

// list reads all leases. It skips files that are released meanwhile. A missing directory has no
// leases.
func (l Leases) list() ([]lease, error) {
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var leases []lease
	for _, e := range entries {
		ip, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock, or last_reserved_ip.N
		}
		path := filepath.Join(l.Dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		key := strings.TrimSpace(string(data))
		id, _, _ := strings.Cut(key, "\n")
		leases = append(leases, lease{ip: ip, path: path, id: strings.TrimSpace(id), key: key})
	}
	return leases, nil
}

// Owners returns the container ID of each lease, by the path of the lease file.
func (l Leases) Owners() (map[string]string, error) {
	leases, err := l.list()
	owners := make(map[string]string, len(leases))
	for _, lease := range leases {
		owners[lease.path] = lease.id
	}
	return owners, err
}

// Release removes every lease for whose container ID drop returns true. It waits for the lock until
// ctx ends.
func (l Leases) Release(ctx context.Context, drop func(id string) bool) error {
	return l.releaseIf(ctx, func(lease lease) bool { return drop(lease.id) })
}

func (l Leases) releaseIf(ctx context.Context, drop func(lease) bool) error {
	unlock, err := l.Lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock leases %s: %w", l.Dir, err)
	}
	defer unlock()
	leases, err := l.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, lease := range leases {
		if !drop(lease) {
			continue
		}
		if err := os.Remove(lease.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("release lease: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Owner returns the container ID that holds the lease of an address; "" if it is not leased.
func (l Leases) Owner(ip netip.Addr) (string, error) {
	data, err := os.ReadFile(l.Path(ip))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	id, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(id), err
}

// Holds reports whether a container holds the lease of an address.
func (l Leases) Holds(ip netip.Addr, id string) bool {
	owner, err := l.Owner(ip)
	return err == nil && owner == id
}

// Take writes the lease of an address that the container's interface already uses. The lease of
// another container is errdefs.ErrAlreadyExists.
func (l Leases) Take(ctx context.Context, ip netip.Addr, id, ifName string) error {
	if l.Holds(ip, id) {
		return nil
	}
	unlock, err := l.lockNew(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch owner, err := l.Owner(ip); {
	case err != nil:
		return fmt.Errorf("read lease: %w", err)
	case owner != "" && owner != id:
		return fmt.Errorf("lease of %s: held by %s: %w", ip, owner, errdefs.ErrAlreadyExists)
	}
	return os.WriteFile(l.Path(ip), []byte(key(id, ifName)), 0o600)
}

// lockNew makes the directory, with the plugin's mode, and locks it.
func (l Leases) lockNew(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err = l.Lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock leases %s: %w", l.Dir, err)
	}
	return unlock, nil
}

// key returns the content of a lease file.
func key(id, ifName string) string { return strings.TrimSpace(id) + "\r\n" + ifName }

// reserve writes the lease of a free address and notes it as the last one of its set of ranges. It
// returns false if the address is leased. The caller holds the lock.
func (l Leases) reserve(ip netip.Addr, set int, key string) (bool, error) {
	f, err := os.OpenFile(l.Path(ip), os.O_WRONLY|os.O_EXCL|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write lease: %w", err)
	}
	_, err = f.WriteString(key)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.WriteFile(l.last(set), []byte(ip.String()), 0o600)
	}
	if err != nil {
		_ = os.Remove(l.Path(ip)) // the write error is the cause
		return false, fmt.Errorf("write lease: %w", err)
	}
	return true, nil
}

// last is the file with the address that was leased last from a set of ranges.
func (l Leases) last(set int) string {
	return filepath.Join(l.Dir, "last_reserved_ip."+strconv.Itoa(set))
}

// lastReserved returns that address. It is invalid if there is none.
func (l Leases) lastReserved(set int) netip.Addr {
	data, err := os.ReadFile(l.last(set))
	if err != nil {
		return netip.Addr{} // allocation starts from the first address
	}
	ip, _ := netip.ParseAddr(strings.TrimSpace(string(data)))
	return ip
}

// remove removes the lease of an address. The caller holds the lock.
func (l Leases) remove(ip net.IP) error {
	if err := os.Remove(filepath.Join(l.Dir, ip.String())); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}
