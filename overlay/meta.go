package overlay

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const xattrRecord = "SCHILY.xattr."

type times struct{ access, modify unix.Timespec }

// meta is what an entry says of its inode, checked.
type meta struct {
	uid, gid int
	mode     uint32 // permission bits with setuid, setgid and sticky
	times    times
	attrs    []attribute
}

type attribute struct{ name, value string }

func newMeta(h *tar.Header) (meta, error) {
	m := meta{uid: h.Uid, gid: h.Gid, mode: uint32(h.Mode & 0o7777)}
	if !validOwner(h.Uid) || !validOwner(h.Gid) {
		return m, invalid("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	access := h.ModTime
	if h.AccessTime.After(access) {
		access = h.AccessTime
	}
	m.times = times{timespec(access), timespec(h.ModTime)}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || strings.HasPrefix(name, overlayAttrPrefix) { // overlay's own are ours to set
			continue
		}
		if len(m.attrs) == maxAttributes || len(value) > maxAttribute || len(name) > maxName {
			return m, invalid("extended attributes exceed the limit")
		}
		m.attrs = append(m.attrs, attribute{name, value})
	}
	return m, nil
}

// validOwner excludes 2³²−1, which tells chown to change nothing.
func validOwner(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }

// timespec bounds a time as dockerd does: nothing before 1970.
func timespec(t time.Time) unix.Timespec {
	if t.Unix() < 0 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// applyFd sets everything but the times. The order matters: a change of owner
// clears setuid and setgid bits and security.capability.
func (m *meta) applyFd(fd int) error {
	if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	for _, a := range m.attrs {
		if err := unix.Fsetxattr(fd, a.name, []byte(a.value), 0); err != nil && !attributeRefused(err) {
			return fmt.Errorf("set attribute %q: %w", a.name, err)
		}
	}
	return nil
}

// applyAt is applyFd with the times for what cannot or must not be opened.
// base is not followed.
func (m *meta) applyAt(dirfd int, base string, symlink bool) error {
	if err := unix.Fchownat(dirfd, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if !symlink { // nor is base one: the caller has just made it, or knows it
		if err := unix.Fchmodat(dirfd, base, m.mode, 0); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	for _, a := range m.attrs {
		if err := unix.Lsetxattr(fdPath(dirfd, base), a.name, []byte(a.value), 0); err != nil && !attributeRefused(err) {
			return fmt.Errorf("set attribute %q: %w", a.name, err)
		}
	}
	return utimesAt(dirfd, base, m.times)
}

// attributeRefused tells of attributes that this file system, kernel or kind of
// file cannot have, which dockerd passes over too.
func attributeRefused(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)
}

func utimesAt(dirfd int, base string, t times) error {
	ts := []unix.Timespec{t.access, t.modify}
	if err := unix.UtimesNanoAt(dirfd, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("change times: %w", err)
	}
	return nil
}

// futimens sets the times of an open file; x/sys has only the form with a path.
func futimens(fd int, access, modify unix.Timespec) error {
	ts := [2]unix.Timespec{access, modify}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("change times: %w", errno)
	}
	return nil
}
