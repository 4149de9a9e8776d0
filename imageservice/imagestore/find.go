package imagestore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/imageconfig"
)

// List returns all images, newest first.
func (s *Store) List() []Image {
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

// Get finds an image by tag, digest reference, ID or unique prefix of an ID. A full ID has
// precedence over a reference of the same spelling, and a reference over a prefix. Errors:
// errdefs.ErrNotFound, errdefs.ErrInvalidArgument for a malformed reference or an ambiguous prefix.
func (s *Store) Get(ref string) (Image, error) {
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

// Detail is Get with the configuration, which it reads from the disk. Errors: those of Get,
// errdefs.ErrDataLoss, and errdefs.ErrInvalidArgument for a configuration that cannot be decoded.
func (s *Store) Detail(ref string) (Detailed, error) {
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

// find returns the ID for which ref stands, also of an unusable image. s.mu is held.
func (s *Store) find(ref string) (digest.Digest, error) {
	hex, isHex := idPrefix(ref)
	if isHex && len(hex) == 64 {
		if id := digest.NewDigestFromEncoded(digest.SHA256, hex); s.known(id) {
			return id, nil
		}
		return "", fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
	}
	named, err := ParseReference(ref)
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

func (s *Store) known(id digest.Digest) bool {
	_, ok := s.images[id]
	_, broken := s.broken[id]
	return ok || broken
}

func (s *Store) findPrefix(ref, hex string) (digest.Digest, error) {
	var found digest.Digest
	for id := range s.images {
		if !strings.HasPrefix(id.Encoded(), hex) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("find image %q: ambiguous ID prefix: %w", ref, errdefs.ErrInvalidArgument)
		}
		found = id
	}
	if found == "" {
		return "", fmt.Errorf("find image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}
