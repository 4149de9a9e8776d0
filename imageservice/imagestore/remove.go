package imagestore

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/operations"
)

// Remove removes an image with all its references, and then the layers that nothing else needs,
// with their sources. Layers below a writable layer and layers that are reserved stay. It returns
// nil if there is no such image. Errors: errdefs.ErrInvalidArgument for a malformed reference or an
// ambiguous prefix of an ID, and those of the disk.
func (s *Store) Remove(ctx context.Context, ref string) error {
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
	ctx, op := s.operations.Begin(ctx, "remove image", operations.Subject{Image: ref})
	err = s.remove(ctx, ref, id)
	op.End(err)
	return err
}

// remove removes an image that exists. s.change is held.
func (s *Store) remove(ctx context.Context, ref string, id digest.Digest) error {
	operations.Enter(ctx, "remove references")
	if err := s.forget(id); err != nil {
		return fmt.Errorf("remove image %q: remove references: %w", ref, err)
	}
	operations.Enter(ctx, "remove layers")
	if err := s.sweepLayers(ctx); err != nil {
		return fmt.Errorf("remove image %q: remove layers: %w", ref, err)
	}
	return nil
}

// SweepAtStart removes the layers that Sweep removes, such as those of a pull that a crash
// interrupted. It removes nothing if an image is damaged: a new pull of that image needs only what
// is missing. Call it at the start, after the layers of all containers are held. Errors: those of
// Sweep.
func (s *Store) SweepAtStart(ctx context.Context) error {
	s.mu.RLock()
	damaged := len(s.broken) > 0
	s.mu.RUnlock()
	if damaged {
		return nil
	}
	return s.Sweep(ctx)
}

// Sweep removes the layers that neither an image nor a container needs, with their sources. Such
// layers remain if an image is removed before the last container that uses it. Errors: those of the
// disk.
func (s *Store) Sweep(ctx context.Context) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.sweepLayers(ctx); err != nil {
		return fmt.Errorf("remove layers that nothing needs: %w", err)
	}
	return nil
}

// forget removes the image's names, then its configuration. s.change is held.
func (s *Store) forget(id digest.Digest) error {
	repos := s.repos.clone()
	repos.removeID(id)
	if err := repos.save(s.reposPath); err != nil {
		return err
	}
	s.mu.Lock()
	s.repos = repos
	delete(s.images, id)
	delete(s.broken, id)
	s.mu.Unlock()
	return s.db.remove(id)
}

// live returns the layers that images need. It may omit the layers below them. opaque means that
// there are other layers, which are unknown.
func (s *Store) live() (live []digest.Digest, opaque bool) {
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

// sweepLayers removes the layers that no image needs, and their sources. s.change is held.
func (s *Store) sweepLayers(ctx context.Context) error {
	live, opaque := s.live()
	if opaque {
		return nil
	}
	before := s.layers.Layers()
	_, err := s.layers.SweepUnused(ctx, live)
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
	return errors.Join(err, s.distribution.forget(gone))
}
