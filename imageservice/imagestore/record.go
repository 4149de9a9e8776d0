package imagestore

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// RecordArgs describes an image to record.
type RecordArgs struct {
	Config     []byte          // configuration, byte for byte
	Checkpoint string          // name of the container of which the image is a checkpoint; otherwise ""
	Ref        reference.Named // tag or digest by which the image was pulled
	Manifest   digest.Digest   // digest for which Ref stood; names the image too
}

// Record adds an image whose layers are committed, or adds names to a known one. The caller has
// reserved the layers. It returns the image with all its names. When it returns, configuration and
// names are on stable storage. Errors: those of the disk, and of a layer that is missing.
func (s *Store) Record(a RecordArgs) (Image, error) {
	byDigest, err := withDigest(a.Ref, a.Manifest)
	if err != nil {
		return Image{}, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	id, err := s.db.write(a.Config)
	if err != nil {
		return Image{}, err
	}
	if a.Checkpoint != "" {
		if err := s.markCheckpoint(id, a.Checkpoint); err != nil {
			return Image{}, err
		}
	}
	return s.point(id, a.Ref, byDigest)
}

// markCheckpoint records that the image is a checkpoint of a container. s.change is held.
func (s *Store) markCheckpoint(id digest.Digest, container string) error {
	if err := s.db.mark(id, container); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if img, ok := s.images[id]; ok {
		img.Checkpoint = true
		s.images[id] = img
	}
	return nil
}

// Move makes ref stand for the image that its repository has by a manifest digest. ok is false if
// there is no such image; nothing has changed then. Errors: those of the disk.
func (s *Store) Move(ref reference.Named, manifest digest.Digest) (img Image, ok bool, err error) {
	byDigest, err := withDigest(ref, manifest)
	if err != nil {
		return Image{}, false, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if img, err = s.Get(byDigest.String()); err != nil {
		return Image{}, false, nil
	}
	img, err = s.point(img.ID, ref)
	return img, err == nil, err
}

// Tag gives an image another name. If another image has the name, it loses it. Errors: those of
// Get, errdefs.ErrInvalidArgument for a name with a digest, and those of the disk.
func (s *Store) Tag(image, name string) error {
	named, err := ParseReference(name)
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
func (s *Store) point(id digest.Digest, refs ...reference.Named) (Image, error) {
	repos := s.repos.clone()
	touched := []digest.Digest{id}
	for _, ref := range refs {
		if old := repos.set(ref, id); old != "" && old != id {
			touched = append(touched, old)
		}
		repos.boundDigests(ref, id)
	}
	if err := repos.save(s.reposPath); err != nil {
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

// LayerSource is a blob from which a layer was extracted.
type LayerSource struct {
	DiffID     digest.Digest // of the layer
	Blob       digest.Digest // as the registry has it
	Repository string        // full name
}

// HasSource reports whether a blob is recorded as a source of a layer.
func (s *Store) HasSource(blob, diffID digest.Digest) bool {
	recorded, err := readFile(s.distribution.diffIDPath(blob), maxDigestSize)
	return err == nil && digest.Digest(recorded) == diffID
}

// AddSources records the blobs from which layers were extracted and checked. The records are a
// cache in Docker's form. When it returns they are on stable storage. Errors: those of the disk.
func (s *Store) AddSources(sources ...LayerSource) error {
	if len(sources) == 0 {
		return nil
	}
	for _, l := range sources {
		if err := s.distribution.add(l.DiffID, layerSource{Digest: l.Blob, SourceRepository: l.Repository}); err != nil {
			return err
		}
	}
	return s.distribution.sync()
}
