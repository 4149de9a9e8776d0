package mounts

import (
	"errors"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// IsMountPoint reports whether something is mounted on path, which may be a file. It asks the
// kernel (statx, Linux 5.8) and reads the mount table only on older kernels.
func IsMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	return mountinfo.Mounted(path)
}

// Containing returns the mount of table that contains path, nil if there is none. The table is in
// the order of mountinfo.GetMounts: the last of several mounts on one directory is the visible one.
// path is absolute and without symbolic links.
func Containing(table []*mountinfo.Info, path string) *mountinfo.Info {
	above := mountinfo.ParentsFilter(path)
	var nearest *mountinfo.Info
	for _, m := range table {
		skip, _ := above(m)
		if !skip && (nearest == nil || len(m.Mountpoint) >= len(nearest.Mountpoint)) {
			nearest = m
		}
	}
	return nearest
}

// Below returns the mount points of table below dir, relative to dir, parents before children. dir
// is absolute and without symbolic links.
func Below(table []*mountinfo.Info, dir string) []string {
	var below []string
	for _, m := range table {
		if path, ok := strings.CutPrefix(m.Mountpoint, strings.TrimSuffix(dir, "/")+"/"); ok && path != "" {
			below = append(below, path)
		}
	}
	slices.Sort(below)
	return slices.Compact(below)
}
