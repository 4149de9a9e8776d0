package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/mounts"
)

// capabilityAttr holds the capabilities of an executable, in the form of struct vfs_ns_cap_data of
// linux/capability.h.
const capabilityAttr = "security.capability"

// rechown is the way for file systems that cannot be mapped: m is mounted as it is, and then every
// file is given the owner that it has in the user namespace. That copies the whole image into the
// writable layer, which takes its size on disk and the time to read and write it, for each
// container; and the writable layer has the node's IDs on disk.
//
// The root directory comes last, so that its owner says that all is done. A layer that a crash left
// half done is finished, if no ID of the mappings is one both inside and outside; the container
// that it was for is not.
func (s *Store) rechown(ctx context.Context, m overlayMount, o *Owners) error {
	if err := s.mountOverlay(m); err != nil {
		return err
	}
	root := m.absolute(s.paths.overlay()).target
	if err := o.chownTree(ctx, root); err != nil {
		return errors.Join(fmt.Errorf("change owners for a user namespace: %w", err), mounts.Unmount(root))
	}
	return nil
}

func (o *Owners) chownTree(ctx context.Context, root string) error {
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: root, Err: err}
	}
	if _, again := outside(o.UIDs, st.Uid); again {
		return nil
	}
	if err := o.chownBelow(ctx, root); err != nil {
		return err
	}
	return o.chown(root)
}

// chownBelow does what is in dir. It follows no link, and nobody else is in the tree yet.
func (o *Owners) chownBelow(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || path == dir {
			return err
		}
		return o.chown(path)
	})
}

// chown changes one file, and keeps the rights of its executable, which a change of the owner takes
// away.
func (o *Owners) chown(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	uid, doneUser := outside(o.UIDs, st.Uid)
	gid, doneGroup := outside(o.GIDs, st.Gid)
	if doneUser && doneGroup { // or a hard link of what is done
		return nil
	}
	capabilities := make([]byte, 64)
	n, err := unix.Lgetxattr(path, capabilityAttr, capabilities)
	if err != nil {
		n = 0
	}
	if err := unix.Lchown(path, int(uid), int(gid)); err != nil {
		return &os.PathError{Op: "lchown", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if n == 0 {
		return nil
	}
	if err := unix.Lsetxattr(path, capabilityAttr, o.capabilities(capabilities[:n]), 0); err != nil {
		return &os.PathError{Op: "setxattr", Path: path, Err: err}
	}
	return nil
}

// capabilities binds the capabilities of a file to the user namespace, by the node's ID of its
// root: version 3 of the attribute (Linux 4.14).
func (o *Owners) capabilities(v []byte) []byte {
	const version2, version3, versionMask, size2 = 0x02000000, 0x03000000, 0xff000000, 20
	magic := binary.LittleEndian.Uint32(v)
	if len(v) != size2 || magic&versionMask != version2 {
		return v
	}
	root, _ := outside(o.UIDs, 0)
	v = binary.LittleEndian.AppendUint32(v[:size2:size2], root)
	binary.LittleEndian.PutUint32(v, magic&^versionMask|version3)
	return v
}

// outside returns the ID on the node of an ID in a user namespace. An ID that is none there stays;
// done says that it is one of those outside already.
func outside(maps []IDMap, id uint32) (mapped uint32, done bool) {
	for _, m := range maps {
		if id >= m.Inside && id-m.Inside < m.Length {
			return m.Outside + (id - m.Inside), false
		}
	}
	for _, m := range maps {
		if id >= m.Outside && id-m.Outside < m.Length {
			return id, true
		}
	}
	return id, false
}

// IDMap maps the IDs from Inside on, in a user namespace, to those from Outside on, on the node.
type IDMap struct{ Inside, Outside, Length uint32 }

// Owners says whom the files of a mount belong to: a user namespace.
type Owners struct {
	// UserNS is the file of the user namespace.
	UserNS string
	// UIDs and GIDs are its mappings.
	UIDs, GIDs []IDMap
}

// check refuses owners without a root.
func (o *Owners) check() error {
	hasRoot := func(m IDMap) bool { return m.Inside == 0 && m.Length > 0 }
	for _, maps := range [][]IDMap{o.UIDs, o.GIDs} {
		if !slices.ContainsFunc(maps, hasRoot) {
			return fmt.Errorf("user namespace %s without an ID for its root: %w", o.UserNS, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
