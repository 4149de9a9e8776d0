package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Copy makes a draft of a layer that is committed on top of another parent. It reads the layer's tar
// and applies it, so that the copy shares no file with the layer, and content that has changed on
// disk is noticed. It counts against copies, the allowance of all copies for an image, to which its
// bytes add nothing: an image can name any number of layers that the store has.
//
// Copy returns errdefs.ErrNotFound if no committed layer has the diff ID, and errdefs.ErrDataLoss if
// the layer's content has changed. Otherwise its errors are those of Apply and TarStream.
func (s *Store) Copy(ctx context.Context, diffID digest.Digest, copies *Allowance) (*Draft, error) {
	d, err := s.copyLayer(ctx, diffID, copies)
	if err != nil {
		return nil, fmt.Errorf("copy layer: %w", err)
	}
	return d, nil
}

func (s *Store) copyLayer(ctx context.Context, diffID digest.Digest, copies *Allowance) (_ *Draft, err error) {
	l, err := s.withDiffID(diffID)
	if err != nil {
		return nil, err
	}
	tar, err := s.TarStream(ctx, l.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	d, err := s.ApplyWithin(ctx, copies, untransferred{tar})
	if err != nil {
		return nil, err
	}
	if d.DiffID != diffID {
		err := fmt.Errorf("layer %s has diff ID %s now, not %s: %w", l.ID, d.DiffID, diffID, errdefs.ErrDataLoss)
		return nil, errors.Join(err, d.Discard())
	}
	d.Copied = true
	return d, nil
}

// withDiffID returns the layer of a diff ID with the lowest chain ID.
func (s *Store) withDiffID(diffID digest.Digest) (found Layer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		if l.DiffID == diffID && (found.ID == "" || l.ID < found.ID) {
			found = l
		}
	}
	if found.ID == "" {
		return found, fmt.Errorf("no layer has diff ID %s: %w", diffID, errdefs.ErrNotFound)
	}
	return found, nil
}

// untransferred is an input of which no byte was transferred.
type untransferred struct{ io.Reader }

func (untransferred) Received() int64 { return 0 }
func (untransferred) Repeated() int64 { return 0 }
func (untransferred) ByteCost() int64 { return 0 }
