package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Options are the arguments of Open.
type Options struct {
	// Root is the data root: the directory that holds image/ and overlay2/.
	Root string
}

// Store is an open layer store. Its methods are safe for concurrent use.
type Store struct {
	paths   layout
	names   names
	lock    *os.File    // open directory overlay2, flocked
	buffers sync.Pool   // *[]byte of bufferSize, shared by all Apply calls
	splits  sync.Pool   // *splitWriter that is closed, shared by all Apply calls
	oldAPI  atomic.Bool // the kernel has no fsconfig "lowerdir+": use mount(2)
	// noMapping is set once a probe found that the layers cannot be ID-mapped.
	noMapping atomic.Bool
	floors    floors        // minimum allowance of every image; constant
	stop      chan struct{} // closed by Close: ends sweeps early
	sweeps    sync.WaitGroup

	mu        sync.Mutex // guards what follows; no lock of a writable layer is taken under it
	closed    bool
	layers    map[digest.Digest]Layer
	damaged   map[digest.Digest]Layer // unusable entries of layerdb, as far as they could be read
	rws       map[string]*writable
	reserved  map[digest.Digest]int // counts of Reserve and Hold
	busy      map[string]bool       // directories of overlay2 being created or removed
	left      map[string]bool       // directories of overlay2 whose removal failed; SweepUnused retries
	abandoned abandoned             // for SweepAbandoned
}

// Layer is a committed read-only layer. It never changes, so concurrent use is safe.
type Layer struct {
	ID      digest.Digest // chain ID
	Parent  digest.Digest // chain ID of the layer below, "" for a base
	DiffID  digest.Digest // digest of the uncompressed tar
	CacheID string        // name of the directory below overlay2
	Size    int64         // bytes as dockerd counts them: lengths of files and links, hard links once
}

// Open opens the store in o.Root, and creates it if it does not exist. It locks the store: if
// another process has it open, Open returns errdefs.ErrUnavailable. Without a root it returns
// errdefs.ErrInvalidArgument. Open also finds what a crash left incomplete; [Store.SweepAbandoned]
// removes it.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		paths: layout{o.Root}, names: newNames(), stop: make(chan struct{}),
		floors: floors{work: workFloor, kept: keptFloor},
		layers: map[digest.Digest]Layer{}, damaged: map[digest.Digest]Layer{},
		rws: map[string]*writable{}, reserved: map[digest.Digest]int{}, busy: map[string]bool{},
		left: map[string]bool{},
	}
	s.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	if err := s.open(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open layer store %s: %w", o.Root, err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if s.paths.root == "" {
		return fmt.Errorf("no data root: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.makeDirectories(); err != nil {
		return err
	}
	if err := s.takeLock(ctx); err != nil {
		return err
	}
	found, err := s.load(ctx)
	if err != nil {
		return err
	}
	return s.findAbandoned(ctx, found)
}

func (s *Store) makeDirectories() error {
	if err := s.makeRoot(); err != nil {
		return err
	}
	for dir, mode := range map[string]os.FileMode{
		s.paths.links(): 0o710, s.paths.layers(): 0o700, s.paths.mounts(): 0o700, s.paths.tmp(): 0o700,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

// rootMode is the mode of the data root, as in dockerd. Other users of the host cannot reach the
// files below, such as setuid files of images.
const rootMode = 0o710

// makeRoot creates the data root, or removes the permissions of other users from an existing one.
// Owner and group stay: if dockerd used user namespaces, the group needs its access.
func (s *Store) makeRoot() error {
	st, err := os.Stat(s.paths.root)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(s.paths.root, rootMode); err != nil {
			return err
		}
		return os.Chmod(s.paths.root, rootMode)
	}
	if err != nil || st.Mode()&0o007 == 0 {
		return err
	}
	return os.Chmod(s.paths.root, st.Mode()&^0o007)
}

const (
	// lockWait is how long Open waits for the lock. If a daemon is killed between fork and exec of
	// a program, the child holds the lock until exec closes it.
	lockWait = 2 * time.Second
	// lockInterval is the time between two attempts of Open to take the lock.
	lockInterval = 10 * time.Millisecond
)

func (s *Store) takeLock(ctx context.Context) error {
	dir, err := os.Open(s.paths.overlay())
	if err != nil {
		return err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for begin := time.Now(); errors.Is(err, unix.EWOULDBLOCK) && ctx.Err() == nil && time.Since(begin) < lockWait; {
		time.Sleep(lockInterval)
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock: another process has the store open: %w", errdefs.ErrUnavailable)
		}
		return fmt.Errorf("lock: %w", err)
	}
	s.lock = dir
	return nil
}

// Close ends background work and releases the lock. Mounts stay. After the next Open,
// SweepAbandoned removes drafts that were neither committed nor discarded.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.stop)
	s.mu.Unlock()
	s.sweeps.Wait()
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// checkOpen returns errdefs.ErrUnavailable after Close, when another process may have the store.
func (s *Store) checkOpen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("layer store is closed: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// Layer returns the layer with that chain ID, or errdefs.ErrNotFound.
func (s *Store) Layer(chain digest.Digest) (Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layerLocked(chain)
}

func (s *Store) layerLocked(chain digest.Digest) (Layer, error) {
	l, ok := s.layers[chain]
	if !ok {
		return Layer{}, fmt.Errorf("layer %s: %w", chain, errdefs.ErrNotFound)
	}
	return l, nil
}

// Layers returns all layers, ordered by chain ID.
func (s *Store) Layers() []Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Layer, 0, len(s.layers))
	for _, id := range slices.Sorted(maps.Keys(s.layers)) {
		all = append(all, s.layers[id])
	}
	return all
}

// Hold protects a layer and its ancestors from SweepUnused until release is called. More calls of
// release do nothing. If the layer does not exist, Hold returns errdefs.ErrNotFound.
func (s *Store) Hold(chain digest.Digest) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.layerLocked(chain); err != nil {
		return nil, err
	}
	return s.reserveLocked(chain), nil
}

// Reserve is [Store.Hold] for chain IDs that need not exist yet. A pull reserves the layers that it
// will commit, and releases them once the image's record is persisted. So no SweepUnused can remove
// the layers in between.
func (s *Store) Reserve(chains ...digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserveLocked(chains...)
}

func (s *Store) reserveLocked(chains ...digest.Digest) (release func()) {
	chains = slices.Clone(chains)
	for _, c := range chains {
		s.reserved[c]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range chains {
			if s.reserved[c]--; s.reserved[c] == 0 {
				delete(s.reserved, c)
			}
		}
	})
}

// cacheIDs returns the cache IDs of a layer and its ancestors, top first.
func (s *Store) cacheIDs(chain digest.Digest) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for chain != "" {
		l, err := s.layerLocked(chain)
		if err != nil {
			return nil, err
		}
		ids, chain = append(ids, l.CacheID), l.Parent
	}
	return ids, nil
}

// setBusy marks a directory of overlay2 as being created or removed, so that Check does not report
// it as an orphan.
func (s *Store) setBusy(id string, busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if busy {
		s.busy[id] = true
	} else {
		delete(s.busy, id)
	}
}
