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

// rechown is for file systems that do not support ID-mapped mounts. It mounts m without a mapping
// and changes the owner of every file to its ID on the node. So each container copies the whole
// image into its writable layer, with the time and the disk space of that copy. The writable layer
// has the node's IDs on disk.
//
// The root directory is last, so that its owner shows that all files are done. After a crash, the
// next Mount finishes the layer unless an ID of the mappings is both an inside and an outside ID.
// The interrupted start of the container is not resumed.
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

// chownBelow changes everything below dir. It follows no link, and no other process uses the tree
// yet.
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

// chown changes the owner of one file. It restores setuid bits and capabilities, which a change of
// the owner clears.
func (o *Owners) chown(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	uid, doneUser := outside(o.UIDs, st.Uid)
	gid, doneGroup := outside(o.GIDs, st.Gid)
	if doneUser && doneGroup { // or another name of a file that is done
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

// capabilities limits a file's capabilities to the user namespace. Version 3 of the attribute
// (Linux 4.14) contains the ID on the node of the namespace's root.
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

// outside maps an ID in a user namespace to the ID on the node. It returns an unmapped ID as it is;
// done reports whether that ID is an outside ID already.
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

// IDMap maps Length IDs of a user namespace, starting at Inside, to IDs on the node, starting at
// Outside.
type IDMap struct{ Inside, Outside, Length uint32 }

// Owners is the user namespace that maps the owners of a mount's files. Mount only reads it.
type Owners struct {
	// UserNS is the path of the user namespace's file.
	UserNS string
	// UIDs and GIDs are the namespace's mappings.
	UIDs, GIDs []IDMap
}

// check refuses mappings without an ID for root.
func (o *Owners) check() error {
	hasRoot := func(m IDMap) bool { return m.Inside == 0 && m.Length > 0 }
	for _, maps := range [][]IDMap{o.UIDs, o.GIDs} {
		if !slices.ContainsFunc(maps, hasRoot) {
			return fmt.Errorf("user namespace %s without an ID for its root: %w", o.UserNS, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
