package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/mounts"
)

// RW describes a writable layer. It is a copy, so concurrent use is safe.
type RW struct {
	ID      string        // the container's
	MountID string        // name of its directory below overlay2
	InitID  string        // name of its init layer's directory; "" if dockerd made none
	Parent  digest.Digest // top layer of its image, "" for an empty root
}

// writable is a writable layer in memory.
type writable struct {
	RW
	mu   sync.Mutex // held during mount, unmount and remove; locked before Store.mu
	gone bool
}

// CreateArgs are the arguments of Create.
type CreateArgs struct {
	ID     string        // the container's ID, a file name of at most 128 bytes
	Parent digest.Digest // top layer of the image, "" for an empty root
}

// Create makes a writable layer and, between it and the parent, its init layer. SweepUnused keeps
// the parent as long as the writable layer exists. Create returns errdefs.ErrAlreadyExists if the
// ID is in use, errdefs.ErrNotFound if the parent does not exist, and errdefs.ErrInvalidArgument if
// the ID is no valid file name. After Close it returns errdefs.ErrUnavailable.
func (s *Store) Create(ctx context.Context, a CreateArgs) (_ RW, err error) {
	if err := checkID(a.ID); err != nil {
		return RW{}, err
	}
	if err := s.checkOpen(); err != nil {
		return RW{}, fmt.Errorf("create writable layer %s: %w", a.ID, err)
	}
	release, err := s.claimNew(a)
	if err != nil {
		return RW{}, fmt.Errorf("create writable layer %s: %w", a.ID, err)
	}
	defer release()
	id := newID()
	rw := RW{ID: a.ID, MountID: id, InitID: id + initSuffix, Parent: a.Parent}
	if err := s.build(ctx, rw); err != nil {
		err = errors.Join(err, s.removeDirectory(context.WithoutCancel(ctx), rw.MountID), s.removeDirectory(context.WithoutCancel(ctx), rw.InitID), os.RemoveAll(s.paths.writeSet(id)))
		return RW{}, fmt.Errorf("create writable layer %s: %w", a.ID, err)
	}
	return rw, nil
}

// claimNew protects the ID from other Create calls and the parent from SweepUnused until release is
// called.
func (s *Store) claimNew(a CreateArgs) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := "create " + a.ID // cannot be the name of a directory
	if s.rws[a.ID] != nil || s.busy[key] {
		return nil, errdefs.ErrAlreadyExists
	}
	unhold := func() {}
	if a.Parent != "" {
		if _, err := s.layerLocked(a.Parent); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
		unhold = s.reserveLocked(a.Parent)
	}
	s.busy[key] = true
	return func() {
		s.setBusy(key, false)
		unhold()
	}, nil
}

// build creates both directories, then their entry in layerdb.
func (s *Store) build(ctx context.Context, rw RW) error {
	s.setBusy(rw.MountID, true)
	defer s.setBusy(rw.MountID, false)
	s.setBusy(rw.InitID, true)
	defer s.setBusy(rw.InitID, false)
	below, err := s.cacheIDs(rw.Parent)
	if err != nil {
		return err
	}
	if err := s.makeInit(rw.InitID, below); err != nil {
		return fmt.Errorf("make init layer: %w", err)
	}
	if err := failpoint.Hit("overlay.create.init"); err != nil {
		return err
	}
	if err := s.makeUpper(ctx, rw); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.publishWritable(rw)
}

func (s *Store) makeUpper(ctx context.Context, rw RW) error {
	if err := os.Mkdir(s.paths.dir(rw.MountID), 0o710); err != nil {
		return err
	}
	if err := makeDir(s.paths.diff(rw.MountID), 0o755); err != nil {
		return err
	}
	below := s.newStack([]string{rw.InitID}, nil)
	defer below.close()
	if err := below.inherit(ctx, rw.MountID, &impliedDir{implied: true}); err != nil {
		return err
	}
	if err := s.describeUpper(rw.MountID, rw.InitID); err != nil {
		return err
	}
	return failpoint.Hit("overlay.create.upper")
}

func (s *Store) publishWritable(rw RW) error {
	set := s.paths.writeSet(rw.MountID)
	if err := os.Mkdir(set, 0o700); err != nil {
		return err
	}
	files := map[string]string{mountIDName: rw.MountID, initIDName: rw.InitID}
	if rw.Parent != "" {
		files[parentName] = rw.Parent.String()
	}
	if err := writeFiles(set, files); err != nil {
		return err
	}
	if err := failpoint.Hit("overlay.create.prepared"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(set, s.paths.mount(rw.ID)); err != nil {
		return err
	}
	s.rws[rw.ID] = &writable{RW: rw}
	return nil
}

// RWs returns all writable layers, ordered by ID.
func (s *Store) RWs() []RW {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]RW, 0, len(s.rws))
	for _, id := range slices.Sorted(maps.Keys(s.rws)) {
		all = append(all, s.rws[id].RW)
	}
	return all
}

// writable returns a writable layer locked, or errdefs.ErrNotFound.
func (s *Store) writable(id string) (*writable, error) {
	s.mu.Lock()
	w := s.rws[id]
	s.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("writable layer %s: %w", id, errdefs.ErrNotFound)
	}
	w.mu.Lock()
	if w.gone {
		w.mu.Unlock()
		return nil, fmt.Errorf("writable layer %s: %w", id, errdefs.ErrNotFound)
	}
	return w, nil
}

// Remove unmounts and deletes a writable layer and its init layer. It is no error if the layer does
// not exist. Remove returns errdefs.ErrInvalidArgument if the ID is no valid file name.
func (s *Store) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	w, err := s.writable(id)
	if errdefs.IsNotFound(err) {
		return s.removeDamaged(id)
	}
	defer w.mu.Unlock()
	if err := mounts.Unmount(filepath.Join(s.paths.dir(w.MountID), mergedName)); err != nil {
		return fmt.Errorf("remove writable layer %s: %w", id, err)
	}
	set, err := s.retire(w)
	if err != nil {
		return fmt.Errorf("remove writable layer %s: %w", id, err)
	}
	if err := failpoint.Hit("overlay.remove.retired"); err != nil {
		return err
	}
	err = s.removeRetired(context.WithoutCancel(ctx), w.MountID)
	if w.InitID != "" {
		err = errors.Join(err, s.removeRetired(context.WithoutCancel(ctx), w.InitID))
	}
	if err = errors.Join(err, os.RemoveAll(set)); err != nil {
		return fmt.Errorf("remove writable layer %s: %w", id, err)
	}
	return nil
}

// retire removes the entry. If the directories are not removed then, the next SweepUnused or
// SweepAbandoned removes them.
func (s *Store) retire(w *writable) (set string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set = s.paths.writeSet(newID())
	if err := os.Rename(s.paths.mount(w.ID), set); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	delete(s.rws, w.ID)
	s.busy[w.MountID], s.busy[w.InitID] = true, true
	w.gone = true
	return set, nil
}

// removeDamaged removes an entry that Open could not read. Such an ID is unknown to the store.
func (s *Store) removeDamaged(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rws[id] != nil || s.busy["create "+id] {
		return nil
	}
	if err := os.RemoveAll(s.paths.mount(id)); err != nil {
		return fmt.Errorf("remove writable layer %s: %w", id, err)
	}
	return nil
}

// Intact reports whether a writable layer has its entry and its directory.
func (s *Store) Intact(id string) bool {
	s.mu.Lock()
	w := s.rws[id]
	s.mu.Unlock()
	if w == nil {
		return false
	}
	_, err := os.Lstat(filepath.Join(s.paths.dir(w.MountID), diffName))
	return err == nil
}

// Usage is the disk usage of a writable layer.
type Usage struct {
	Bytes  uint64 // allocated, hard links once
	Inodes uint64 // hard links once, the root directory included
}

// Usage measures the upper directory of a writable layer, which may be in use. It returns
// errdefs.ErrNotFound if the layer does not exist.
func (s *Store) Usage(ctx context.Context, id string) (Usage, error) {
	s.mu.Lock()
	w := s.rws[id]
	s.mu.Unlock()
	if w == nil {
		return Usage{}, fmt.Errorf("usage of writable layer %s: %w", id, errdefs.ErrNotFound)
	}
	m := measure{linked: map[uint64]bool{}}
	fd, err := unix.Open(s.paths.diff(w.MountID), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return Usage{}, fmt.Errorf("usage of writable layer %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("usage of writable layer %s: %w", id, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := m.tree(ctx, fd); err != nil {
		return Usage{}, fmt.Errorf("usage of writable layer %s: %w", id, err)
	}
	return m.usage, nil
}

// measure sums up a tree that the container may change meanwhile.
type measure struct {
	usage  Usage
	linked map[uint64]bool // inodes with more than one link that were counted already
}

// tree counts an open directory and everything below it.
func (m *measure) tree(ctx context.Context, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	m.count(&st)
	return walkTree(ctx, fd, walk{lenient: true, names: m.names})
}

func (m *measure) names(dirfd int, names []string) (dirs []string, err error) {
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m.count(&st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, name)
		}
	}
	return dirs, nil
}

func (m *measure) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if m.linked[st.Ino] {
			return
		}
		m.linked[st.Ino] = true
	}
	m.usage.Bytes += uint64(st.Blocks) * 512
	m.usage.Inodes++
}
