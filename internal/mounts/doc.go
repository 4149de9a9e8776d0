// Package mounts finds, attaches and removes mounts of this process's mount namespace.
//
// Removal is idempotent: a path where nothing is mounted, or that does not exist, is no error. The
// last component of a path to unmount is never followed if it is a symbolic link. Functions that
// read the mount table cost time proportional to the number of mounts on the node.
//
// Nothing here makes file systems: overlays are in package overlay, pinned namespaces in podns. The
// keeper does not use this package, because it links only the standard library.
package mounts
