package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leases is a directory of the IPAM plugin host-local. It has one file per leased address, named
// after the address; the file holds the container ID and, on a second line, the interface. A file
// named lock is locked (flock) during changes.
type leases struct{ dir string }

// release removes every lease for whose container ID drop returns true. A missing directory has no
// leases. release waits for the lock until ctx ends.
func (l leases) release(ctx context.Context, drop func(id string) bool) error {
	unlock, err := l.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock leases %s: %w", l.dir, err)
	}
	defer unlock()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue // the lock, or last_reserved_ip.N
		}
		path := filepath.Join(l.dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read lease: %w", err))
			continue
		}
		if id, _, _ := strings.Cut(string(data), "\n"); !drop(strings.TrimSpace(id)) {
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("release lease: %w", err))
		}
	}
	return errors.Join(errs...)
}

// lock acquires the lock that host-local uses.
func (l leases) lock(ctx context.Context) (unlock func(), err error) {
	if _, err := os.Stat(l.dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(l.dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o600)
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
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}
