package lookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/userid"
	"github.com/micarun/mica/runtimeservice/spec"
)

// maxUserFile bounds an image's /etc/passwd and /etc/group, in bytes.
const maxUserFile = 8 << 20

// linesPerCheck is how many lines of an image's file are read between checks of the context.
const linesPerCheck = 1 << 10

// userEntry is a line of /etc/passwd (passwd(5)). The image controls the content of the fields.
type userEntry struct{ name, uid, gid, home string }

// hasID reports whether the user ID field is that number. A field that is not a number is not an
// ID, in particular not 0.
func (e userEntry) hasID(id uint32) bool {
	n, numeric, err := userid.Parse(e.uid)
	return numeric && err == nil && n == id
}

// user returns the entry's user. As in Docker and containerd, an entry without a group field gives
// group 0. Some minimal images have such entries.
func (e userEntry) user() (spec.User, error) {
	uid, numeric, err := userid.Parse(e.uid)
	if err != nil || !numeric {
		return spec.User{}, invalid("user %q has ID %q in /etc/passwd of the image", e.name, e.uid)
	}
	u := spec.User{UID: uid, Home: e.home}
	if e.gid != "" {
		if u.GID, numeric, err = userid.Parse(e.gid); err != nil || !numeric {
			return spec.User{}, invalid("user %q has group %q in /etc/passwd of the image", e.name, e.gid)
		}
	}
	// Home becomes an environment variable, which plugins receive as UTF-8.
	if u.Home == "" || strings.ContainsRune(u.Home, 0) {
		u.Home = "/"
	}
	u.Home = strings.ToValidUTF8(u.Home, "\uFFFD")
	return u, nil
}

// firstUser returns the first matching entry, or nil if there is none.
func firstUser(ctx context.Context, passwd []byte, matches func(userEntry) bool) (*userEntry, error) {
	var found *userEntry
	err := eachEntry(ctx, passwd, 7, func(fields []string) bool {
		e := userEntry{name: fields[0], uid: fields[2], gid: fields[3], home: fields[5]}
		if matches(e) {
			found = &e
		}
		return found == nil
	})
	return found, err
}

// groupEntry is a line of /etc/group (group(5)).
type groupEntry struct{ name, gid, members string }

// lists reports whether a user is among the members.
func (e groupEntry) lists(user string) bool {
	for rest, more := e.members, e.members != ""; more; {
		var member string
		if member, rest, more = strings.Cut(rest, ","); member == user {
			return true
		}
	}
	return false
}

// eachGroup calls do for the entries of /etc/group until do returns false.
func eachGroup(ctx context.Context, group []byte, do func(groupEntry) bool) error {
	return eachEntry(ctx, group, 5, func(fields []string) bool {
		return do(groupEntry{name: fields[0], gid: fields[2], members: fields[3]})
	})
}

// eachEntry calls do with the first fields of each line until do returns false. Missing fields are
// "". As in glibc, comments and the lines for a directory service ("+", "-") are skipped.
func eachEntry(ctx context.Context, text []byte, fields int, do func(fields []string) bool) error {
	entry := make([]string, fields)
	for n := 0; len(text) > 0; n++ {
		if n%linesPerCheck == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || bytes.IndexByte([]byte("#+-"), line[0]) >= 0 {
			continue
		}
		clear(entry)
		copy(entry, strings.SplitN(string(line), ":", fields))
		if !do(entry) {
			return nil
		}
	}
	return nil
}

// readInRoot reads a small regular file as a process chrooted to rootfs would see it. A missing
// file reads as empty. It checks the file through an O_PATH descriptor first, so that it never
// opens a FIFO or device.
func readInRoot(rootfs, name string) ([]byte, error) {
	handle, err := pathrs.OpenInRoot(rootfs, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, invalid("%s of the image: too many symbolic links", name)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", name, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat %s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("%s of the image is not a regular file", name)
	}
	if info.Size() > maxUserFile {
		return nil, invalid("%s of the image has %d bytes, the limit is %d", name, info.Size(), maxUserFile)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", name, err)
	}
	defer f.Close()
	return readBounded(f, maxUserFile)
}
