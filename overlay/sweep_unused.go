package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/failpoint"
)

// Swept is the result of SweepUnused.
type Swept struct {
	Layers []digest.Digest // children before their parents
	Bytes  int64           // as Layer.Size
}

// SweepUnused removes every layer that is not in use. In use are the layers of live, the parents of
// writable layers, held and reserved layers, and the ancestors of all of these. SweepUnused also
// removes unused damaged entries; they are not part of the result. After an error, or when ctx
// ends, the result has the layers removed until then. After Close, SweepUnused returns
// errdefs.ErrUnavailable.
func (s *Store) SweepUnused(ctx context.Context, live []digest.Digest) (Swept, error) {
	var p Swept
	if err := s.checkOpen(); err != nil {
		return p, fmt.Errorf("sweep layers: %w", err)
	}
	s.removeLeft(ctx)
	if err := s.sweepDamaged(ctx, live); err != nil {
		return p, fmt.Errorf("sweep layers: %w", err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return p, fmt.Errorf("sweep layers: %w", err)
		}
		l, set, err := s.retireOne(live)
		if err != nil {
			return p, fmt.Errorf("sweep layers: %w", err)
		}
		if set == "" {
			return p, nil
		}
		p.Layers, p.Bytes = append(p.Layers, l.ID), p.Bytes+l.Size
		if err := failpoint.Hit("overlay.sweep.retired"); err != nil {
			return p, err
		}
		if err := errors.Join(s.removeRetired(ctx, l.CacheID), os.RemoveAll(set)); err != nil {
			return p, fmt.Errorf("sweep layer %s: %w", l.ID, err)
		}
	}
}

func (s *Store) sweepDamaged(ctx context.Context, live []digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := s.markLocked(live)
	for id := range s.damaged {
		if needed[id] {
			continue
		}
		if err := s.dropDamagedLocked(ctx, id); err != nil {
			return fmt.Errorf("damaged layer %s: %w", id, err)
		}
	}
	return nil
}

// retireOne removes the entry of one unused layer without children. If its directory is not removed
// then, the next SweepUnused or SweepAbandoned removes it. set is "" if there is no such layer.
func (s *Store) retireOne(live []digest.Digest) (_ Layer, set string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := s.markLocked(live)
	parents := map[digest.Digest]bool{}
	for id, l := range s.layers {
		if !needed[id] {
			parents[l.Parent] = true
		}
	}
	for id, l := range s.layers {
		if needed[id] || parents[id] {
			continue
		}
		set = s.paths.writeSet(newID())
		if err := os.Rename(s.paths.layer(id), set); err != nil {
			return Layer{}, "", fmt.Errorf("layer %s: %w", id, err)
		}
		delete(s.layers, id)
		s.busy[l.CacheID] = true
		return l, set, nil
	}
	return Layer{}, "", nil
}

func (s *Store) markLocked(live []digest.Digest) map[digest.Digest]bool {
	needed := map[digest.Digest]bool{}
	mark := func(id digest.Digest) {
		for id != "" && !needed[id] {
			needed[id] = true
			parent := s.layers[id].Parent
			if d, ok := s.damaged[id]; ok {
				parent = d.Parent
			}
			id = parent
		}
	}
	for _, id := range live {
		mark(id)
	}
	for _, w := range s.rws {
		mark(w.Parent)
	}
	for id := range s.reserved {
		mark(id)
	}
	return needed
}
