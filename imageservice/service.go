package imageservice

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/decompress"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
)

// sweepTimeout bounds the removal of unused layers after a failed pull.
const sweepTimeout = time.Minute

// Image is an image of the node.
type Image = imagestore.Image

// Detailed is an image with its configuration.
type Detailed = imagestore.Detailed

// Service is the open image service of a node.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer

	root       string
	operations *operations.Tracker
	opts       atomic.Pointer[Options] // never nil; the options themselves do not change
	layers     *overlay.Store
	store      *imagestore.Store
	registries *registry.Client
	usage      *usage
	pulls      calls[Image, *pullProgress]
	fetches    calls[*overlay.Draft, *layerProgress]
	fetched    atomic.Int64 // bytes of layers
	streams    *decompress.Pool

	commit sync.Mutex // orders commits of layers
}

// Open reads the images below o.Root. layers must stay open until Close has returned. A damaged
// image, or one that lacks a layer, is logged and left out. Open removes no layer; see
// SweepAtStart.
//
// Errors: impossible options, and a store that cannot be read at all.
func Open(ctx context.Context, o Options, layers *overlay.Store) (*Service, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Service{
		root:       o.Root,
		operations: o.Operations,
		layers:     layers,
		registries: registry.New(o.registries()),
		streams:    decompress.NewPool(),
	}
	s.opts.Store(&o)
	log := klog.FromContext(ctx)
	s.fetches.drop = func(d *overlay.Draft) {
		if err := d.Discard(); err != nil {
			log.Error(err, "Discarding a layer failed; the next start removes it", "diffID", d.DiffID)
		}
	}
	s.store, err = imagestore.Open(ctx, imagestore.Options{Root: o.Root, Pinned: o.Pinned, Operations: o.Operations}, layers)
	if err != nil {
		return nil, err
	}
	s.usage, err = openUsage(ctx, o.Root, layers)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", o.Root, err)
	}
	return s, nil
}

func (s *Service) options() *Options { return s.opts.Load() }

// Reload replaces every option but Root and Operations. Running pulls keep theirs, but count
// against the new TotalConcurrency. If an option is impossible, Reload changes nothing.
func (s *Service) Reload(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return fmt.Errorf("reload image service: %w", err)
	}
	s.opts.Store(&o)
	s.registries.Reload(o.registries())
	s.store.SetPinned(o.Pinned)
	return nil
}

// Close cancels all pulls and waits for them.
func (s *Service) Close() error {
	s.pulls.close()
	s.fetches.close()
	return s.usage.close()
}

// List returns all images, newest first.
func (s *Service) List() []Image { return s.store.List() }

// Get finds an image; see imagestore.Store.Get.
func (s *Service) Get(ref string) (Image, error) { return s.store.Get(ref) }

// Detail finds an image and reads its configuration; see imagestore.Store.Detail.
func (s *Service) Detail(ref string) (Detailed, error) { return s.store.Detail(ref) }

// Tag gives an image another name; see imagestore.Store.Tag.
func (s *Service) Tag(_ context.Context, image, name string) error { return s.store.Tag(image, name) }

// Check compares the images on disk with those in memory; see imagestore.Store.Check.
func (s *Service) Check(ctx context.Context) ([]overlay.Problem, error) { return s.store.Check(ctx) }

// Remove removes an image with all its references; see imagestore.Store.Remove.
func (s *Service) Remove(ctx context.Context, ref string) error {
	defer s.usage.changed()
	return s.store.Remove(ctx, ref)
}

// SweepAtStart removes unused layers at the start, after the layers of all containers are held; see
// imagestore.Store.SweepAtStart.
func (s *Service) SweepAtStart(ctx context.Context) error {
	defer s.usage.changed()
	return s.store.SweepAtStart(ctx)
}

// Sweep removes unused layers; see imagestore.Store.Sweep.
func (s *Service) Sweep(ctx context.Context) error {
	defer s.usage.changed()
	return s.store.Sweep(ctx)
}

// sweepAfterPull removes the layers of a pull that has failed before it recorded the image.
func (s *Service) sweepAfterPull(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTimeout)
	defer cancel()
	if err := s.Sweep(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Removing unused layers failed; the next removal of an image tries again")
	}
}
