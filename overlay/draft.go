package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/atomicfile"
	"github.com/micarun/mica/internal/failpoint"
)

// Draft is an extracted layer that is not committed yet. The caller of Apply must commit or discard
// it. Its fields are constant, and its methods are safe for concurrent use.
type Draft struct {
	DiffID  digest.Digest // digest of the tar that was read
	Size    int64         // as Layer.Size
	CacheID string
	Copied  bool // by Copy

	store   *Store
	implied impliedDir // directories that the tar did not list
	budget  *budget    // of memory, for implied

	mu   sync.Mutex // held while the draft is committed or discarded
	done bool
}

// Discard removes the draft. After a commit or an earlier Discard it does nothing. After an error,
// SweepUnused retries the removal.
func (d *Draft) Discard() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.discardLocked()
}

//nolint:contextcheck // a draft is removed also after the end of the call's context
func (d *Draft) discardLocked() error {
	if d.done {
		return nil
	}
	d.budget.leave()
	err := errors.Join(d.store.removeRetired(context.Background(), d.CacheID), os.RemoveAll(d.store.paths.writeSet(d.CacheID)))
	if err != nil {
		return fmt.Errorf("discard draft %s: %w", d.CacheID, err)
	}
	d.done = true
	return nil
}

// Register applies one layer, checks that its diff ID is want ("" accepts any) and commits it on
// top of parent ("" for a base). It returns errdefs.ErrFailedPrecondition for another diff ID, and
// the errors of [Store.Apply] and [Store.Commit]. After an error the layer is discarded.
func (s *Store) Register(ctx context.Context, parent, want digest.Digest, tar io.Reader) (_ Layer, err error) {
	d, err := s.Apply(ctx, tar)
	if err != nil {
		return Layer{}, err
	}
	defer func() { err = errors.Join(err, d.Discard()) }()
	if want != "" && d.DiffID != want {
		return Layer{}, fmt.Errorf("register layer: diff ID is %s, expected %s: %w", d.DiffID, want, errdefs.ErrFailedPrecondition)
	}
	layers, err := s.Commit(ctx, parent, d)
	if err != nil {
		return Layer{}, err
	}
	return layers[0], nil
}

// Commit makes drafts visible on top of parent ("" for a base), base first, and returns their
// layers in the same order. All of them are on stable storage before the first one is visible. If a
// layer exists already, Commit returns it and discards its draft.
//
// After an error, the caller must still commit or discard the drafts that did not become layers.
// Commit returns errdefs.ErrNotFound if the parent does not exist, and errdefs.ErrUnavailable after
// Close. It returns errdefs.ErrInvalidArgument for a draft that is used twice or belongs to another
// store, and for layers that exceed their allowance.
func (s *Store) Commit(ctx context.Context, parent digest.Digest, drafts ...*Draft) ([]Layer, error) {
	if err := s.checkOpen(); err != nil {
		return nil, fmt.Errorf("commit layers: %w", err)
	}
	unlock, err := s.lockDrafts(drafts)
	if err != nil {
		return nil, fmt.Errorf("commit layers: %w", err)
	}
	defer unlock()
	if parent != "" {
		release, err := s.Hold(parent)
		if err != nil {
			return nil, fmt.Errorf("commit layers: parent: %w", err)
		}
		defer release()
	}
	chains, chain := []digest.Digest{}, parent
	for _, d := range drafts {
		chain = chainID(chain, d.DiffID)
		chains = append(chains, chain)
	}
	defer s.Reserve(chains...)() // existing layers of the plan must stay
	for {
		layers, again, err := s.commitOnce(ctx, parent, drafts)
		if err != nil {
			return nil, fmt.Errorf("commit layers: %w", err)
		}
		if !again {
			return layers, nil
		}
	}
}

func (s *Store) lockDrafts(drafts []*Draft) (unlock func(), err error) {
	seen := map[*Draft]bool{}
	for _, d := range drafts {
		if d == nil || d.store != s || seen[d] {
			return nil, fmt.Errorf("draft of another store, or named twice: %w", errdefs.ErrInvalidArgument)
		}
		seen[d] = true
	}
	// All calls lock in the same order, so that two calls with the same drafts cannot deadlock.
	drafts = slices.SortedFunc(slices.Values(drafts), func(a, b *Draft) int { return strings.Compare(a.CacheID, b.CacheID) })
	for _, d := range drafts {
		d.mu.Lock()
	}
	unlock = func() {
		for _, d := range drafts {
			d.mu.Unlock()
		}
	}
	for _, d := range drafts {
		if d.done {
			unlock()
			return nil, fmt.Errorf("draft %s is already committed or discarded: %w", d.CacheID, errdefs.ErrInvalidArgument)
		}
	}
	return unlock, nil
}

// planned is a draft that is being committed, or the existing layer that replaces it.
type planned struct {
	Layer
	draft    *Draft
	existing bool
}

// commitOnce makes one attempt. again is true if another call committed or removed a layer of the
// plan meanwhile. Then the layers above must be written again, because they contain its short name.
func (s *Store) commitOnce(ctx context.Context, parent digest.Digest, drafts []*Draft) (_ []Layer, again bool, err error) {
	plan := s.plan(parent, drafts)
	below, err := s.cacheIDs(parent)
	if err != nil {
		return nil, false, err
	}
	under := s.newStack(below, s.newLookups(drafts))
	defer under.close()
	for _, p := range plan {
		if !p.existing {
			if err := s.prepare(ctx, p, under); err != nil {
				return nil, false, fmt.Errorf("prepare layer %s: %w", p.ID, err)
			}
		}
		under.push(p.CacheID)
	}
	if err := s.syncData(); err != nil {
		return nil, false, err
	}
	if err := failpoint.Hit("overlay.commit.synced"); err != nil {
		return nil, false, err
	}
	if again, err = s.publish(ctx, plan); err != nil || again {
		return nil, again, err
	}
	if err := atomicfile.SyncDir(s.paths.layers()); err != nil {
		return nil, false, err
	}
	layers, err := s.finish(plan)
	return layers, false, err
}

func (s *Store) plan(parent digest.Digest, drafts []*Draft) []planned {
	s.mu.Lock()
	defer s.mu.Unlock()
	var plan []planned
	for _, d := range drafts {
		id := chainID(parent, d.DiffID)
		p := planned{Layer: Layer{ID: id, Parent: parent, DiffID: d.DiffID, CacheID: d.CacheID, Size: d.Size}, draft: d}
		if l, ok := s.layers[id]; ok {
			p.Layer, p.existing = l, true
		}
		plan, parent = append(plan, p), id
	}
	return plan
}

// prepare completes the directory and the entry of one layer. Another attempt calls it again, maybe
// with other layers below.
func (s *Store) prepare(ctx context.Context, p planned, below *stack) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := below.inherit(ctx, p.CacheID, &p.draft.implied); err != nil {
		return err
	}
	parent := ""
	if n := len(below.ids); n > 0 {
		parent = below.ids[n-1]
	}
	if err := s.describe(p.CacheID, parent); err != nil {
		return err
	}
	if err := s.writeLayer(p.Layer); err != nil {
		return err
	}
	return failpoint.Hit("overlay.commit.prepared")
}

// describe writes link, lower, work and the short name of a directory that will never be an upper
// directory. parent is the directory below, or "".
func (s *Store) describe(id, parent string) error {
	if err := s.describeUpper(id, parent); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.paths.dir(id), committedName), nil, 0o600)
}

func (s *Store) describeUpper(id, parent string) error {
	dir := s.paths.dir(id)
	link, err := readString(filepath.Join(dir, linkName))
	if err != nil { // not a second call
		link = newLink()
		if err := writeFiles(dir, map[string]string{linkName: link}); err != nil {
			return err
		}
	}
	err = os.Symlink(filepath.Join("..", id, diffName), filepath.Join(s.paths.links(), link))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if parent == "" {
		return nil
	}
	lower, err := s.lowerAbove(parent)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, workName), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return writeFiles(dir, map[string]string{lowerName: lower})
}

// lowerAbove returns the content of the file lower for a directory directly above the directory id.
func (s *Store) lowerAbove(id string) (string, error) {
	link, err := readString(filepath.Join(s.paths.dir(id), linkName))
	if err != nil {
		return "", err
	}
	below, err := readString(filepath.Join(s.paths.dir(id), lowerName))
	if errors.Is(err, os.ErrNotExist) {
		return linksName + "/" + link, nil
	}
	return strings.Join([]string{linksName + "/" + link, below}, ":"), err
}

// syncData writes all data of the store's file systems to stable storage.
func (s *Store) syncData() error {
	db, err := os.Open(s.paths.layerdb())
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(s.lock.Fd()), &a), unix.Fstat(int(db.Fd()), &b)); err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	if err := unix.Syncfs(int(s.lock.Fd())); err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	if a.Dev == b.Dev {
		return nil
	}
	if err := unix.Syncfs(int(db.Fd())); err != nil {
		return fmt.Errorf("sync layerdb: %w", err)
	}
	return nil
}

// publish renames the entries into layerdb, base first.
func (s *Store) publish(ctx context.Context, plan []planned) (again bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range plan {
		if l, ok := s.layers[p.ID]; ok != p.existing || (ok && l.CacheID != p.CacheID) {
			return true, nil
		}
	}
	for _, p := range plan {
		if p.existing {
			continue
		}
		if err := s.replaceDamagedLocked(ctx, p.ID); err != nil {
			return false, err
		}
		if err := os.Rename(s.paths.writeSet(p.CacheID), s.paths.layer(p.ID)); err != nil {
			return false, fmt.Errorf("publish layer %s: %w", p.ID, err)
		}
		s.layers[p.ID] = p.Layer
		delete(s.busy, p.CacheID)
		p.draft.done = true
		p.draft.budget.leave()
		if err := failpoint.Hit("overlay.commit.published"); err != nil {
			return false, err
		}
	}
	return false, nil
}

// replaceDamagedLocked removes a damaged entry of the same chain ID, and its directory if nothing
// needs it any more.
func (s *Store) replaceDamagedLocked(ctx context.Context, chain digest.Digest) error {
	if _, ok := s.damaged[chain]; !ok {
		return nil
	}
	if err := s.dropDamagedLocked(ctx, chain); err != nil {
		return fmt.Errorf("replace damaged layer %s: %w", chain, err)
	}
	return nil
}

// dropDamagedLocked removes a damaged layer. After an error, SweepUnused retries the rest.
func (s *Store) dropDamagedLocked(ctx context.Context, chain digest.Digest) error {
	old := s.damaged[chain]
	set := s.paths.writeSet(newID())
	if err := os.Rename(s.paths.layer(chain), set); err != nil {
		return err
	}
	delete(s.damaged, chain)
	if s.names.directory.MatchString(old.CacheID) && !s.claimedLocked(old.CacheID) {
		if err := s.removeDirectory(ctx, old.CacheID); err != nil {
			s.left[old.CacheID] = true
			return errors.Join(err, os.RemoveAll(set))
		}
	}
	return os.RemoveAll(set)
}

func (s *Store) claimedLocked(cacheID string) bool {
	for _, l := range s.layers {
		if l.CacheID == cacheID {
			return true
		}
	}
	for _, l := range s.damaged {
		if l.CacheID == cacheID {
			return true
		}
	}
	return s.busy[cacheID] || s.lowersLocked()[cacheID]
}

// finish discards the drafts whose layers existed already.
func (s *Store) finish(plan []planned) (layers []Layer, err error) {
	for _, p := range plan {
		layers = append(layers, p.Layer)
		if p.existing {
			err = errors.Join(err, p.draft.discardLocked())
		}
	}
	return layers, err
}
