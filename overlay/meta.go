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

// meta is the validated metadata of an entry.
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
		if !ok || strings.HasPrefix(name, overlayAttrPrefix) { // only this package may set overlayfs's attributes
			continue
		}
		if len(m.attrs) == maxAttributes || len(value) > maxAttribute || len(name) > maxName {
			return m, invalid("extended attributes exceed the limit")
		}
		m.attrs = append(m.attrs, attribute{name, value})
	}
	return m, nil
}

// validOwner excludes 2³²−1, because chown does not change an owner to it.
func validOwner(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }

// timespec limits a time like dockerd: to 1970 or later.
func timespec(t time.Time) unix.Timespec {
	if t.Unix() < 0 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// applyFd sets everything but the times. The order matters: a change of owner clears setuid and
// setgid bits and security.capability. A change to the present value is left out, because it takes
// ten times as long as reading the value.
func (m *meta) applyFd(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("read owner and mode: %w", err)
	}
	changed := int64(st.Uid) != int64(m.uid) || int64(st.Gid) != int64(m.gid)
	if changed {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return fmt.Errorf("change owner: %w", err)
		}
	}
	if changed || st.Mode&0o7777 != m.mode {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	for _, a := range m.attrs {
		if err := unix.Fsetxattr(fd, a.name, []byte(a.value), 0); err != nil && !attributeRefused(err) {
			return attributeError(a, err, func(st *unix.Statfs_t) error { return unix.Fstatfs(fd, st) })
		}
	}
	return nil
}

// applyAt sets everything and the times of a file that cannot or must not be opened. It does not
// follow base.
func (m *meta) applyAt(dirfd int, base string, symlink bool) error {
	if err := unix.Fchownat(dirfd, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("change owner: %w", err)
	}
	if !symlink { // base is no link: the caller has just created it, or knows it
		if err := unix.Fchmodat(dirfd, base, m.mode, 0); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	for _, a := range m.attrs {
		if err := unix.Lsetxattr(fdPath(dirfd, base), a.name, []byte(a.value), 0); err != nil && !attributeRefused(err) {
			return attributeError(a, err, func(st *unix.Statfs_t) error { return unix.Fstatfs(dirfd, st) })
		}
	}
	return utimesAt(dirfd, base, m.times)
}

// attributeRefused reports whether the file system, kernel or kind of file does not support the
// attribute. dockerd ignores these errors too.
func attributeRefused(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)
}

// attributeError returns the error for an attribute that could not be set. File systems limit the
// total size of a file's attributes. Beyond it, XFS returns E2BIG or ERANGE. ext4 with its single
// block returns ENOSPC, as for a full disk. If the disk has enough free blocks for any attribute,
// the layer is at fault.
func attributeError(a attribute, err error, statfs func(*unix.Statfs_t) error) error {
	var st unix.Statfs_t
	large := errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE)
	if errors.Is(err, unix.ENOSPC) && statfs(&st) == nil {
		large = int64(st.Bavail)*st.Bsize > 16*maxAttribute
	}
	if large {
		return invalid("set attribute %q: the attributes are larger than the limit of the file system: %v", a.name, err)
	}
	return fmt.Errorf("set attribute %q: %w", a.name, err)
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
