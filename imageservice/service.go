package imageservice

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/imageconfig"
	"github.com/micarun/mica/internal/journal"
	"github.com/micarun/mica/overlay"
)

// sweepTimeout bounds the removal of unused layers.
const sweepTimeout = time.Minute

// Service is an open image store.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer

	root         string
	journal      *journal.Journal
	opts         atomic.Pointer[Options] // never nil; what it points to does not change
	layers       *overlay.Store
	db           imagedb
	distribution *distribution
	usage        *usage
	registries   *registry.Client
	pulls        calls[Image, *pullProgress]
	fetches      calls[*overlay.Draft, *layerProgress]
	fetched      atomic.Int64  // bytes of layers
	dictionaries *dictionaries // memory of the streams that need much
	decoders     sync.Pool     // of *zstd.Decoder, for windows of plainZstdWindow

	commit sync.Mutex // orders commits of layers; taken before change
	change sync.Mutex // orders changes of the image store on disk; taken before mu

	mu     sync.RWMutex // guards the fields below
	repos  repositories
	images map[digest.Digest]Image
	broken map[digest.Digest]unusable // images on disk that are not in images
}

// Open reads the images below o.Root. layers must stay open until Close has returned. An image that is damaged or lacks a layer is logged
// and left out; only a store that cannot be read at all is an error. No layer is removed before Sweep.
func Open(ctx context.Context, o Options, layers *overlay.Store) (*Service, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	base := filepath.Join(o.Root, "image", "overlay2")
	s := &Service{
		root:         o.Root,
		journal:      o.Journal,
		registries:   registry.New(o.registries()),
		layers:       layers,
		db:           imagedb{dir: filepath.Join(base, "imagedb")},
		distribution: &distribution{dir: filepath.Join(base, "distribution")},
		dictionaries: newDictionaries(),
		images:       make(map[digest.Digest]Image),
		broken:       make(map[digest.Digest]unusable),
	}
	s.opts.Store(&o)
	log := klog.FromContext(ctx)
	s.fetches.drop = func(d *overlay.Draft) {
		if err := d.Discard(); err != nil {
			log.Error(err, "Discarding a layer failed; the next start sweeps it", "diffID", d.DiffID)
		}
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", base, err)
	}
	s.usage, err = openUsage(ctx, o.Root, layers)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", base, err)
	}
	return s, nil
}

func (s *Service) options() *Options { return s.opts.Load() }

// Reload takes over every option but Root and Journal. Pulls that run go on under
// the old ones, but count against the new TotalConcurrency.
func (s *Service) Reload(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return fmt.Errorf("reload image service: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries.Reload(o.registries())
	s.opts.Store(&o)
	refs := s.repos.byID()
	for id, img := range s.images { // which are pinned may have changed
		s.images[id] = s.withReferences(img, refs[id])
	}
	return nil
}

// Sweep removes the layers that Collect removes, of pulls that a crash kept from recording their image for example, unless an image is damaged: a new pull of
// that needs only what is missing. It is for the start, once everything is held that containers mount.
func (s *Service) Sweep(ctx context.Context) error {
	s.mu.RLock()
	damaged := len(s.broken) > 0
	s.mu.RUnlock()
	if damaged {
		return nil
	}
	return s.Collect(ctx)
}

// sweep removes the layers of pulls that did not get to record their image.
func (s *Service) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTimeout)
	defer cancel()
	if err := s.Collect(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Removing unused layers failed; the next removal of an image tries again")
	}
}

func (s *Service) load(ctx context.Context) error {
	if err := s.db.open(); err != nil {
		return err
	}
	if err := s.distribution.repair(); err != nil {
		return err
	}
	repos, err := loadRepositories(s.repositoriesPath())
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

// unusable is an image on disk that cannot be used.
type unusable struct {
	// layers stay as long as the image: it is whole, and only Mica cannot use it.
	layers []digest.Digest
	// opaque says that nobody knows which layers the image has, so that all must stay.
	opaque bool
}

// leaveOut logs why an image cannot be used and finds out which of its layers stay.
func (s *Service) leaveOut(ctx context.Context, id digest.Digest, reason error) unusable {
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
	for _, chain := range chainIDs(diffIDs) {
		if _, err := s.layers.Layer(chain); err == nil {
			u.layers = append(u.layers, chain)
		}
	}
	return u
}

// loadImage builds the Image of an ID from the disk, without its references.
func (s *Service) loadImage(id digest.Digest) (Image, error) {
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
	for _, chain := range chainIDs(c.RootFS.DiffIDs) {
		l, err := s.layers.Layer(chain)
		if err != nil {
			return Image{}, fmt.Errorf("load image %s: %w", id, err)
		}
		img.Layers = append(img.Layers, l.ID) // the store's string, which images of the same layer share
		img.Size += l.Size
	}
	img.Layers = slices.Clip(img.Layers)
	return img, nil
}

// withReferences returns img with its references.
func (s *Service) withReferences(img Image, refs []reference.Named) Image {
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
	img.Pinned = matchesAny(s.options().Pinned, refs...)
	return img
}

func (s *Service) repositoriesPath() string {
	return filepath.Join(s.root, "image", "overlay2", "repositories.json")
}

// Close ends all pulls and waits for them.
func (s *Service) Close() error {
	s.pulls.close()
	s.fetches.close()
	return s.usage.close()
}

// List returns all images, newest first.
func (s *Service) List() []Image {
	s.mu.RLock()
	list := make([]Image, 0, len(s.images))
	for _, img := range s.images {
		list = append(list, img)
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return list
}

// Get finds an image by tag, digest reference, ID or unique prefix of an ID. An ID wins over a reference of the same spelling, a reference over a
// mere prefix. Errors: errdefs.ErrNotFound, errdefs.ErrInvalidArgument for what is neither, or a prefix of several.
func (s *Service) Get(ref string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	img, ok := s.images[id]
	if !ok {
		return Image{}, fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
	}
	return img, nil
}

// Detail is Get with the configuration, which it reads from the disk. Errors: those of Get, and
// errdefs.ErrDataLoss.
func (s *Service) Detail(ref string) (Detailed, error) {
	img, err := s.Get(ref)
	if err != nil {
		return Detailed{}, err
	}
	data, err := s.db.read(img.ID)
	if err != nil {
		return Detailed{}, err
	}
	config, err := imageconfig.Parse(data)
	if err != nil {
		return Detailed{}, fmt.Errorf("read image %s: %w: %w", img.ID, errdefs.ErrInvalidArgument, err)
	}
	return Detailed{Image: img, Config: config}, nil
}

// find returns the ID that ref stands for, of a broken image too. s.mu is held.
func (s *Service) find(ref string) (digest.Digest, error) {
	hex, isHex := idPrefix(ref)
	if isHex && len(hex) == 64 {
		if id := digest.NewDigestFromEncoded(digest.SHA256, hex); s.known(id) {
			return id, nil
		}
		return "", fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
	}
	named, err := parseReference(ref)
	if err == nil {
		if id, ok := s.repos.get(named); ok && s.known(id) {
			return id, nil
		}
	}
	if isHex {
		return s.findPrefix(ref, hex)
	}
	if err != nil {
		return "", err
	}
	return "", fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
}

func (s *Service) known(id digest.Digest) bool {
	_, ok := s.images[id]
	_, broken := s.broken[id]
	return ok || broken
}

func (s *Service) findPrefix(ref, hex string) (digest.Digest, error) {
	var found digest.Digest
	for id := range s.images {
		if !strings.HasPrefix(id.Encoded(), hex) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("find image %q: more than one ID begins so: %w", ref, errdefs.ErrInvalidArgument)
		}
		found = id
	}
	if found == "" {
		return "", fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// imageFacts are what an image is besides its layers.
type imageFacts struct {
	config     []byte
	checkpoint string // the container that it is a checkpoint of, or ""
}

// record makes an image of layers that are committed: its configuration, then the names for it. It returns the image as it is now.
func (s *Service) record(facts imageFacts, refs ...reference.Named) (Image, error) {
	s.change.Lock()
	defer s.change.Unlock()
	id, err := s.db.write(facts.config)
	if err != nil {
		return Image{}, err
	}
	if facts.checkpoint != "" {
		if err := s.db.mark(id, facts.checkpoint); err != nil {
			return Image{}, err
		}
		s.mu.Lock()
		if img, ok := s.images[id]; ok {
			img.Checkpoint = true
			s.images[id] = img
		}
		s.mu.Unlock()
	}
	return s.point(id, refs...)
}

// Tag gives an image one more name. A name that another image had moves.
func (s *Service) Tag(_ context.Context, image, name string) error {
	named, err := parseReference(name)
	if err != nil {
		return err
	}
	if _, ok := named.(reference.Canonical); ok {
		return fmt.Errorf("tag image %q as %q: a tag has no digest: %w", image, name, errdefs.ErrInvalidArgument)
	}
	s.change.Lock()
	defer s.change.Unlock()
	img, err := s.Get(image)
	if err != nil {
		return err
	}
	if err := s.db.touch(img.ID, time.Now()); err != nil {
		return err
	}
	_, err = s.point(img.ID, named)
	return err
}

// point makes references stand for id, on disk and then in memory. s.change is held.
func (s *Service) point(id digest.Digest, refs ...reference.Named) (Image, error) {
	repos := s.repos.clone()
	touched := []digest.Digest{id}
	for _, ref := range refs {
		if old := repos.set(ref, id); old != "" && old != id {
			touched = append(touched, old)
		}
		repos.boundDigests(ref, id)
	}
	if err := repos.save(s.repositoriesPath()); err != nil {
		return Image{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repos = repos
	for _, t := range touched {
		if old, ok := s.images[t]; ok {
			s.images[t] = s.withReferences(old, repos.of(t))
		}
	}
	if img, ok := s.images[id]; ok {
		return img, nil
	}
	img, err := s.loadImage(id)
	if err != nil {
		return Image{}, err
	}
	delete(s.broken, id)
	img = s.withReferences(img, repos.of(id))
	s.images[id] = img
	return img, nil
}

// Remove takes an image and all its references away, and then the layers and what was recorded about them that nothing else needs.
// Layers below a writable layer and of running pulls stay. An image that is not there is no error.
// Errors: errdefs.ErrInvalidArgument for a prefix of several IDs or what is no reference at all.
func (s *Service) Remove(ctx context.Context, ref string) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	id, err := s.find(ref)
	s.mu.RUnlock()
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, op := s.journal.Begin(ctx, "remove image", journal.Subject{Image: ref})
	err = s.remove(ctx, ref, id)
	op.End(err)
	return err
}

// remove takes an image away that is there. s.change is held.
func (s *Service) remove(ctx context.Context, ref string, id digest.Digest) error {
	journal.Enter(ctx, "remove references")
	if err := s.forget(id); err != nil {
		return fmt.Errorf("remove image %q: remove references: %w", ref, err)
	}
	journal.Enter(ctx, "remove layers")
	if err := s.prune(ctx); err != nil {
		return fmt.Errorf("remove image %q: remove layers: %w", ref, err)
	}
	return nil
}

// Collect removes the layers that neither an image nor a container needs: those of an image that was removed while a
// container still used it, once that container is gone.
func (s *Service) Collect(ctx context.Context) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.prune(ctx); err != nil {
		return fmt.Errorf("remove layers that nothing needs: %w", err)
	}
	return nil
}

// forget removes the image's names, then its configuration. s.change is held.
func (s *Service) forget(id digest.Digest) error {
	repos := s.repos.clone()
	repos.removeID(id)
	if err := repos.save(s.repositoriesPath()); err != nil {
		return err
	}
	s.mu.Lock()
	s.repos = repos
	delete(s.images, id)
	delete(s.broken, id)
	s.mu.Unlock()
	return s.db.remove(id)
}

// live returns the layers that images need, with or without the layers below them. opaque says that
// there are others.
func (s *Service) live() (live []digest.Digest, opaque bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, img := range s.images {
		if top := img.Top(); top != "" {
			live = append(live, top)
		}
	}
	for _, u := range s.broken {
		live, opaque = append(live, u.layers...), opaque || u.opaque
	}
	return live, opaque
}

// prune removes the layers that no image needs and what was recorded about them. s.change is held.
func (s *Service) prune(ctx context.Context) error {
	live, opaque := s.live()
	if opaque {
		return nil
	}
	before := s.layers.Layers()
	_, err := s.layers.Prune(ctx, live)
	left := make(map[digest.Digest]bool)
	for _, l := range s.layers.Layers() {
		left[l.DiffID] = true
	}
	var gone []digest.Digest
	for _, l := range before {
		if !left[l.DiffID] {
			gone = append(gone, l.DiffID)
		}
	}
	s.usage.changed()
	return errors.Join(err, s.distribution.forget(gone))
}
