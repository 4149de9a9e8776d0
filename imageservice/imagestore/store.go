package imagestore

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/imageconfig"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
)

// Options of a Store.
type Options struct {
	Root       string              // data root, which is also the root of the overlay store
	Pinned     []string            // patterns of pinned images; see SetPinned
	Operations *operations.Tracker // records removals; nil is none
}

// Store is an open image store.
type Store struct {
	operations   *operations.Tracker
	layers       *overlay.Store
	reposPath    string // of repositories.json
	db           imagedb
	distribution *distribution

	change sync.Mutex // orders changes on disk; taken before mu

	mu     sync.RWMutex // guards the fields below
	pinned []string
	repos  repositories
	images map[digest.Digest]Image
	broken map[digest.Digest]unusable // images on disk that are not in images
}

// unusable is an image on disk that cannot be used.
type unusable struct {
	// layers stay as long as the image: it is intact, and only Mica does not accept it.
	layers []digest.Digest
	// opaque means that the layers are unknown, so that all must stay.
	opaque bool
}

// Open reads the images below o.Root. A damaged image, or one that lacks a layer, is logged and
// left out. Open removes no layer; see SweepAtStart. layers stays open as long as the store is
// used, which has nothing to close.
//
// Errors: those of the disk, and of a repositories.json that cannot be decoded.
func Open(ctx context.Context, o Options, layers *overlay.Store) (*Store, error) {
	base := filepath.Join(o.Root, "image", "overlay2")
	s := &Store{
		operations:   o.Operations,
		layers:       layers,
		reposPath:    filepath.Join(base, "repositories.json"),
		db:           imagedb{dir: filepath.Join(base, "imagedb")},
		distribution: &distribution{dir: filepath.Join(base, "distribution")},
		pinned:       o.Pinned,
		images:       make(map[digest.Digest]Image),
		broken:       make(map[digest.Digest]unusable),
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", base, err)
	}
	return s, nil
}

func (s *Store) load(ctx context.Context) error {
	if err := s.db.open(); err != nil {
		return err
	}
	if err := s.distribution.repair(); err != nil {
		return err
	}
	repos, err := loadRepositories(s.reposPath)
	if err != nil {
		return err
	}
	s.repos = repos
	ids, err := s.db.list()
	if err != nil {
		return err
	}
	refs := s.repos.byID()
	for _, id := range ids {
		img, err := s.loadImage(id)
		if err != nil {
			s.broken[id] = s.leaveOut(ctx, id, err)
			continue
		}
		s.images[id] = s.withReferences(img, refs[id])
	}
	return nil
}

// leaveOut logs why an image cannot be used, and returns its layers that must stay.
func (s *Store) leaveOut(ctx context.Context, id digest.Digest, reason error) unusable {
	log := klog.FromContext(ctx)
	if !errdefs.IsOutOfRange(reason) && !errdefs.IsInvalidArgument(reason) {
		log.Error(reason, "Leaving out a damaged image; pulling it again repairs it", "image", id)
		return unusable{}
	}
	log.Error(reason, "Leaving out an image whose configuration Mica does not accept; it stays on disk until it is removed by its ID", "image", id)
	diffIDs, err := s.db.diffIDs(id)
	if err != nil {
		log.Error(err, "Layers of an image are unknown; no layer is removed until that image is", "image", id)
		return unusable{opaque: true}
	}
	var u unusable
	for _, chain := range ChainIDs(diffIDs) {
		if _, err := s.layers.Layer(chain); err == nil {
			u.layers = append(u.layers, chain)
		}
	}
	return u
}

// loadImage returns an image on disk without its references.
func (s *Store) loadImage(id digest.Digest) (Image, error) {
	data, err := s.db.read(id)
	if err != nil {
		return Image{}, err
	}
	c, err := imageconfig.ParseSummary(data)
	if err != nil {
		return Image{}, fmt.Errorf("load image %s: %w", id, err)
	}
	img := Image{ID: id, User: strings.Clone(c.Config.User), Checkpoint: s.db.marked(id)}
	if c.Created != nil {
		img.Created = *c.Created
	}
	for _, chain := range ChainIDs(c.RootFS.DiffIDs) {
		l, err := s.layers.Layer(chain)
		if err != nil {
			return Image{}, fmt.Errorf("load image %s: %w", id, err)
		}
		img.Layers = append(img.Layers, l.ID) // the overlay store's string, which images of the same layer share
		img.Size += l.Size
	}
	img.Layers = slices.Clip(img.Layers)
	return img, nil
}

// withReferences returns img with its references. s.mu is held, or the store is not open yet.
func (s *Store) withReferences(img Image, refs []reference.Named) Image {
	img.Tags, img.Digests = nil, nil
	for _, ref := range refs {
		if _, ok := ref.(reference.Canonical); ok {
			img.Digests = append(img.Digests, ref.String())
		} else {
			img.Tags = append(img.Tags, ref.String())
		}
	}
	slices.Sort(img.Tags)
	slices.Sort(img.Digests)
	img.Pinned = matchesAny(s.pinned, refs...)
	return img
}

// SetPinned replaces the patterns of pinned images. path.Match applies a pattern to the full
// reference, the familiar one, and the name alone. A malformed pattern matches nothing.
func (s *Store) SetPinned(patterns []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = patterns
	refs := s.repos.byID()
	for id, img := range s.images {
		s.images[id] = s.withReferences(img, refs[id])
	}
}
