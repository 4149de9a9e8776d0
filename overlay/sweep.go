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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/mounts"
)

// abandoned is what Open found of a process that died. Nothing refers to it.
type abandoned struct {
	links       []string // short names of such directories, and dangling short names
	sets        []string // unfinished entries of layerdb
	directories []string // names in overlay2
}

// findAbandoned records what no entry of layerdb claims, for SweepAbandoned. It uses only the
// findings from before any new work began. It removes nothing itself, so that a start does not wait
// for the removal of large trees.
func (s *Store) findAbandoned(ctx context.Context, f *findings) error {
	log := klog.FromContext(ctx)
	var a abandoned
	var err error
	if a.sets, err = s.abandonedWriteSets(); err != nil {
		return err
	}
	if f.unreadable {
		log.Info("Not removing unused layer directories: an entry of layerdb cannot be read", "root", s.paths.root)
	} else {
		a.directories = s.unclaimed(f)
	}
	if a.links, err = s.danglingLinks(f, a.directories); err != nil {
		return err
	}
	for _, id := range s.busyFor(a) {
		s.setBusy(id, true)
	}
	s.abandoned = a
	return nil
}

// busyFor returns the directories that Check must treat as being removed.
func (s *Store) busyFor(a abandoned) []string {
	ids := slices.Clone(a.directories)
	for _, set := range a.sets {
		ids = append(ids, strings.TrimPrefix(filepath.Base(set), writeSet))
	}
	for _, l := range a.links {
		if id, ok := s.linkTarget(filepath.Base(l)); ok {
			ids = append(ids, id)
		}
	}
	return ids
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
	used := s.lowersLocked() // no other goroutine has the store yet
	return slices.DeleteFunc(names, func(n string) bool { return used[n] })
}

// lowersLocked returns the directories that the lower files of writable layers name. They differ
// from layerdb's if an entry was damaged and replaced while a container used it.
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

// Abandoned reports whether Open found something that no SweepAbandoned has started to remove.
func (s *Store) Abandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.abandoned.directories)+len(s.abandoned.sets)+len(s.abandoned.links) > 0
}

// SweepAbandoned removes what Open found incomplete. It may take long, but other calls can run
// meanwhile. When ctx ends, or at Close, it stops within one directory; the next Open finds the
// rest. A second call does nothing. After Close, SweepAbandoned returns errdefs.ErrUnavailable.
func (s *Store) SweepAbandoned(ctx context.Context) error {
	ctx, end, err := s.beginSweep(ctx)
	if err != nil {
		return fmt.Errorf("sweep layer store: %w", err)
	}
	defer end()
	if !s.Abandoned() {
		return nil
	}
	s.mu.Lock()
	a := s.abandoned
	s.abandoned = abandoned{}
	s.mu.Unlock()
	klog.FromContext(ctx).Info("Removing what an earlier process left incomplete", "directories", len(a.directories), "entries", len(a.sets), "links", len(a.links))
	if err := s.removeAbandoned(ctx, a); err != nil {
		return fmt.Errorf("sweep layer store: %w", err)
	}
	return nil
}

// beginSweep returns a context that Close cancels. Close waits until end is called.
func (s *Store) beginSweep(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, fmt.Errorf("layer store is closed: %w", errdefs.ErrUnavailable)
	}
	s.sweeps.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := s.stop
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); s.sweeps.Done() }, nil
}

// removeAbandoned continues after an error. SweepUnused retries what it could not remove.
func (s *Store) removeAbandoned(ctx context.Context, a abandoned) error {
	named := s.busyFor(abandoned{sets: a.sets, links: a.links})
	var errs []error
	for _, path := range slices.Concat(a.links, a.sets) {
		if ctx.Err() == nil {
			errs = append(errs, removeTree(ctx, unix.AT_FDCWD, path))
		}
	}
	doomed := map[string]bool{}
	for _, id := range a.directories {
		doomed[id] = true
	}
	for _, id := range named {
		if !doomed[id] {
			s.setBusy(id, false)
		}
	}
	for _, id := range a.directories {
		if ctx.Err() == nil {
			errs = append(errs, failpoint.Hit("overlay.sweep.directory"), s.removeRetired(ctx, id))
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
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

// danglingLinks returns the short names of garbage, and those without a directory.
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

// linkTarget returns the directory of overlay2 that a short name links to. ok is false if the name
// is no link of the driver.
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

// removeRetired removes a busy directory that nothing refers to any more. After an error or the end
// of ctx, SweepUnused retries, and so does SweepAbandoned after the next Open.
func (s *Store) removeRetired(ctx context.Context, id string) error {
	err := s.removeDirectory(ctx, id)
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

// removeLeft retries the removals that failed in removeRetired.
func (s *Store) removeLeft(ctx context.Context) {
	s.mu.Lock()
	left := slices.Sorted(maps.Keys(s.left))
	for _, id := range left {
		s.busy[id] = true
	}
	s.mu.Unlock()
	for _, id := range left {
		if err := s.removeRetired(ctx, id); err != nil {
			klog.FromContext(ctx).Error(err, "Removing leftover directory failed", "directory", id)
		}
	}
}

// removeDirectory unmounts and deletes overlay2/<id> and its short name. It is idempotent.
func (s *Store) removeDirectory(ctx context.Context, id string) error {
	dir := s.paths.dir(id)
	if err := mounts.Unmount(filepath.Join(dir, mergedName)); err != nil {
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
	return removeTree(ctx, unix.AT_FDCWD, dir)
}

// RemoveTree is os.RemoveAll for a directory that a container has written to. The tree may have any
// depth; the number of open descriptors is limited. A mount in the tree is an error. When ctx ends,
// the rest stays.
func RemoveTree(ctx context.Context, path string) error {
	if err := removeTree(ctx, unix.AT_FDCWD, path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// removeTree deletes name in the directory dirfd and everything below it. It deletes nothing on
// another mount and returns an error for it. It is no error if the name does not exist. The tree
// may have any depth. When ctx ends, the rest stays.
func removeTree(ctx context.Context, dirfd int, name string) error {
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
	if err := walkTree(ctx, fd, walk{removes: true, names: unlinkNames, leave: removeEmpty}); err != nil {
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

// withinMount returns the flags that keep the lookup of a name on the mount of dirfd. With AT_FDCWD
// the name may be any path.
func withinMount(dirfd int) uint64 {
	if dirfd == unix.AT_FDCWD {
		return 0
	}
	return unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV
}
