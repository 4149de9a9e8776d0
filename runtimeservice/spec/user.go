package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxUserFile = 8 << 20

// maxID is the highest user or group ID; the one above it means "unchanged"
// to the kernel.
const maxID = math.MaxUint32 - 1

// ResolveUser finds the user of a container: from the security context, else
// from image (the USER of the image, "name[:group]" or numbers), inside the
// root filesystem at rootfs. Additional holds the primary group first; with
// policy Merge then the groups that /etc/group of the image gives the user,
// then the requested ones. The image's files are opened without leaving
// rootfs, without waiting on a FIFO, and with a bounded size. Users and
// groups that cannot be found, and files that cannot be read, are
// ErrInvalidArgument.
func ResolveUser(rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, image string) (User, error) {
	u, err := resolveUser(rootfs, sc, image)
	if err != nil {
		return User{}, fmt.Errorf("resolve user: %w", err)
	}
	return u, nil
}

func resolveUser(rootfs string, sc *runtimeapi.LinuxContainerSecurityContext, image string) (User, error) {
	name, group, err := requestedUser(sc, image)
	if err != nil {
		return User{}, err
	}
	users, err := readUsers(rootfs)
	if err != nil {
		return User{}, err
	}
	groups, err := readGroups(rootfs)
	if err != nil {
		return User{}, err
	}
	u, entry, err := findUser(users, name)
	if err != nil {
		return User{}, err
	}
	if sc.GetRunAsUsername() != "" && entry == "" {
		return User{}, invalid("user %q is not in /etc/passwd of the image", name)
	}
	if group != "" {
		if u.GID, err = findGroup(groups, group); err != nil {
			return User{}, err
		}
	}
	u.Additional = []uint32{u.GID}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && entry != "" {
		for _, g := range groups {
			if slices.Contains(g.List, entry) && g.Gid >= 0 && g.Gid <= maxID {
				u.Additional = append(u.Additional, uint32(g.Gid))
			}
		}
	}
	for _, id := range sc.GetSupplementalGroups() {
		if id < 0 || id > maxID {
			return User{}, invalid("supplemental group %d", id)
		}
		u.Additional = append(u.Additional, uint32(id))
	}
	u.Additional = unique(u.Additional)
	return u, nil
}

// requestedUser returns the user and group to look for, as names or numbers.
func requestedUser(sc *runtimeapi.LinuxContainerSecurityContext, image string) (name, group string, err error) {
	uid, gid := sc.GetRunAsUser(), sc.GetRunAsGroup()
	if uid != nil && sc.GetRunAsUsername() != "" {
		return "", "", invalid("run_as_user and run_as_username exclude each other")
	}
	if gid != nil {
		if uid == nil && sc.GetRunAsUsername() == "" {
			return "", "", invalid("run_as_group without run_as_user or run_as_username")
		}
		group = strconv.FormatInt(gid.GetValue(), 10)
	}
	switch {
	case uid != nil:
		return strconv.FormatInt(uid.GetValue(), 10), group, nil
	case sc.GetRunAsUsername() != "":
		return sc.GetRunAsUsername(), group, nil
	}
	name, group, _ = strings.Cut(image, ":")
	if name == "" {
		name = "0"
	}
	return name, group, nil
}

// findUser looks up a name or number. entry is the name in /etc/passwd, ""
// for a number that is not there.
func findUser(users []user.User, name string) (u User, entry string, err error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return User{}, "", err
	}
	for _, p := range users {
		if p.Name != name && (!numeric || p.Uid != id) {
			continue
		}
		if p.Uid < 0 || p.Uid > maxID || p.Gid < 0 || p.Gid > maxID {
			return User{}, "", invalid("user %q has ID %d:%d in the image", name, p.Uid, p.Gid)
		}
		u = User{UID: uint32(p.Uid), GID: uint32(p.Gid), Home: p.Home}
		if !numeric {
			u.Username = name
		}
		if u.Home == "" {
			u.Home = "/"
		}
		return u, p.Name, nil
	}
	if !numeric {
		return User{}, "", invalid("user %q is not in /etc/passwd of the image", name)
	}
	return User{UID: uint32(id), Home: "/"}, "", nil
}

func findGroup(groups []user.Group, name string) (uint32, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if g.Name == name && g.Gid >= 0 && g.Gid <= maxID {
			return uint32(g.Gid), nil
		}
	}
	if !numeric {
		return 0, invalid("group %q is not in /etc/group of the image", name)
	}
	return uint32(id), nil
}

// parseID reads a user or group ID; numeric is false for a name.
func parseID(s string) (id int, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, false, nil
	}
	if err != nil || n < 0 || n > maxID {
		return 0, false, invalid("ID %q is not in 0..%d", s, uint32(maxID))
	}
	return int(n), true, nil
}

func readUsers(rootfs string) ([]user.User, error) {
	text, err := readInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return nil, err
	}
	users, err := user.ParsePasswd(bytes.NewReader(text))
	if err != nil {
		return nil, invalid("parse /etc/passwd of the image: %v", err)
	}
	return users, nil
}

func readGroups(rootfs string) ([]user.Group, error) {
	text, err := readInRoot(rootfs, "/etc/group")
	if err != nil {
		return nil, err
	}
	groups, err := user.ParseGroup(bytes.NewReader(text))
	if err != nil {
		return nil, invalid("parse /etc/group of the image: %v", err)
	}
	return groups, nil
}

// readInRoot reads a small regular file as a process chrooted to rootfs would
// see it. A missing file reads as empty. The file is looked at through an
// O_PATH descriptor first, so that no FIFO or device is ever opened.
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
		return nil, fmt.Errorf("look at %s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, invalid("%s of the image is not a regular file", name)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open %s of the image: %w", name, err)
	}
	defer f.Close()
	return readBounded(f, maxUserFile)
}

// unique drops later duplicates.
func unique(ids []uint32) []uint32 {
	var out []uint32
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}
