package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// startSweep finds what no entry of layerdb claims and removes it in the
// background. It decides by what f saw before any new work began.
func (s *Store) startSweep(ctx context.Context, f *findings) error {
	log := klog.FromContext(ctx)
	sets, err := s.abandonedWriteSets()
	if err != nil {
		return err
	}
	var garbage []string
	if f.unreadable {
		log.Info("Not sweeping layer directories: an entry of layerdb cannot be read", "root", s.paths.root)
	} else {
		garbage = s.unclaimed(f)
	}
	links, err := s.danglingLinks(f, garbage)
	if err != nil {
		return err
	}
	if len(garbage)+len(sets)+len(links) == 0 {
		return nil
	}
	log.Info("Sweeping what was left half-made", "directories", len(garbage), "entries", len(sets), "links", len(links))
	for _, l := range links {
		if err := os.Remove(l); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	for _, g := range garbage {
		s.setBusy(g, true)
	}
	s.sweep.Go(func() { s.sweepAll(log, garbage, sets) })
	return nil
}

func (s *Store) unclaimed(f *findings) []string {
	var names []string
	for name := range f.directories {
		if s.names.directory.MatchString(name) && !f.claimed[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	used := s.lowersLocked() // nobody else has the store yet
	return slices.DeleteFunc(names, func(n string) bool { return used[n] })
}

// lowersLocked returns the directories that writable layers stand on by their
// own account. They differ from what layerdb says if an entry was damaged and
// replaced under a container.
func (s *Store) lowersLocked() map[string]bool {
	used := map[string]bool{}
	for _, w := range s.rws {
		lower, err := readString(filepath.Join(s.paths.dir(w.MountID), lowerName))
		if err != nil {
			continue
		}
		for l := range strings.SplitSeq(lower, ":") {
			if id, ok := s.linkTarget(strings.TrimPrefix(l, linksName+"/")); ok {
				used[id] = true
			}
		}
	}
	return used
}

// sweepAll ends early at Close; the next Open goes on.
func (s *Store) sweepAll(log klog.Logger, garbage, sets []string) {
	for _, set := range sets {
		if err := os.RemoveAll(set); err != nil {
			log.Error(err, "Sweep entry", "path", set)
		}
	}
	for _, id := range garbage {
		select {
		case <-s.stop:
			return
		default:
		}
		if err := s.removeRetired(id); err != nil {
			log.Error(err, "Sweep directory", "directory", id)
		}
	}
}

func (s *Store) abandonedWriteSets() ([]string, error) {
	names, err := readNames(s.paths.tmp())
	if err != nil {
		return nil, err
	}
	var sets []string
	for _, n := range names {
		if strings.HasPrefix(n, writeSet) {
			sets = append(sets, filepath.Join(s.paths.tmp(), n))
		}
	}
	return sets, nil
}

// danglingLinks returns the short names of garbage and of nothing at all.
func (s *Store) danglingLinks(f *findings, garbage []string) ([]string, error) {
	doomed := map[string]bool{}
	for _, g := range garbage {
		doomed[g] = true
	}
	names, err := readNames(s.paths.links())
	if err != nil {
		return nil, err
	}
	var links []string
	for _, n := range names {
		id, ok := s.linkTarget(n)
		if ok && (doomed[id] || !f.directories[id]) {
			links = append(links, filepath.Join(s.paths.links(), n))
		}
	}
	return links, nil
}

// linkTarget returns the directory of overlay2 that the short name stands for.
// ok is false for what is not one of the driver's links.
func (s *Store) linkTarget(name string) (id string, ok bool) {
	if !s.names.link.MatchString(name) {
		return "", false
	}
	target, err := os.Readlink(filepath.Join(s.paths.links(), name))
	if err != nil {
		return "", false
	}
	id, found := strings.CutPrefix(target, "../")
	id, diff := strings.CutSuffix(id, "/"+diffName)
	return id, found && diff && s.names.directory.MatchString(id)
}

// removeRetired removes a busy directory that nothing refers to any more. What fails is tried again
// by Prune and by the next Open.
func (s *Store) removeRetired(id string) error {
	err := s.removeDirectory(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, id)
	if err != nil {
		s.left[id] = true
	} else {
		delete(s.left, id)
	}
	return err
}

// removeLeft tries again what removeRetired could not remove.
func (s *Store) removeLeft(ctx context.Context) {
	s.mu.Lock()
	left := slices.Sorted(maps.Keys(s.left))
	for _, id := range left {
		s.busy[id] = true
	}
	s.mu.Unlock()
	for _, id := range left {
		if err := s.removeRetired(id); err != nil {
			klog.FromContext(ctx).Error(err, "Remove directory that an earlier removal left", "directory", id)
		}
	}
}

// removeDirectory unmounts and deletes overlay2/<id> and its short name. It is
// idempotent.
func (s *Store) removeDirectory(id string) error {
	dir := s.paths.dir(id)
	if err := unmountAll(filepath.Join(dir, mergedName)); err != nil {
		return err
	}
	link, err := readString(filepath.Join(dir, linkName))
	if err == nil && s.names.link.MatchString(link) {
		if target, ok := s.linkTarget(link); ok && target == id {
			if err := os.Remove(filepath.Join(s.paths.links(), link)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return removeTree(unix.AT_FDCWD, dir)
}

// RemoveTree is os.RemoveAll for what a container has filled: a tree of any depth, removed with a bounded
// number of descriptors. Something mounted in it is an error.
func RemoveTree(path string) error {
	if err := removeTree(unix.AT_FDCWD, path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// removeTree deletes name below the directory dirfd with all that is in it, but
// nothing on another mount, which is an error. No such name is none. The tree
// may be of any depth.
func removeTree(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	fd, oerr := unix.Openat2(dirfd, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: withinMount(dirfd),
	})
	if errors.Is(oerr, unix.ENOTDIR) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	if oerr != nil {
		return &os.PathError{Op: "open", Path: name, Err: oerr}
	}
	defer func() { _ = unix.Close(fd) }()
	if err := walkTree(context.Background(), fd, walk{removes: true, names: unlinkNames, leave: removeEmpty}); err != nil {
		return err
	}
	return removeEmpty(dirfd, name)
}

func unlinkNames(dirfd int, names []string) (dirs []string, err error) {
	for _, name := range names {
		switch err := unix.Unlinkat(dirfd, name, 0); {
		case errors.Is(err, unix.EISDIR):
			dirs = append(dirs, name)
		case err != nil && !errors.Is(err, unix.ENOENT):
			return nil, &os.PathError{Op: "unlink", Path: name, Err: err}
		}
	}
	return dirs, nil
}

func removeEmpty(dirfd int, name string) error {
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// withinMount lets the first name of a removeTree be a path.
func withinMount(dirfd int) uint64 {
	if dirfd == unix.AT_FDCWD {
		return 0
	}
	return unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV
}

// unmountAll takes every mount off a mount point; no such path is no error.
func unmountAll(path string) error {
	for {
		mounted, err := isMountPoint(path)
		if err != nil || !mounted {
			return err
		}
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: gone in between
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// isMountPoint asks the kernel (statx, Linux 5.8) and on older kernels the
// mount table.
func isMountPoint(path string) (bool, error) {
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
