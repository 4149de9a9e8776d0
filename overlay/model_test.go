package overlay

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/testseed"
)

// model is the expected content of a store.
type model struct {
	layers map[digest.Digest]digest.Digest // chain ID → parent
	rws    map[string]digest.Digest        // ID → parent
	holds  map[digest.Digest]func()
}

// TestModel does random work on a store and on maps. After every step both agree. After every few
// steps, Check finds nothing and the store can be reopened.
func TestModel(t *testing.T) {
	r := testseed.New(t)
	s := newStore(t)
	m := &model{layers: map[digest.Digest]digest.Digest{}, rws: map[string]digest.Digest{}, holds: map[digest.Digest]func(){}}
	for step := range 200 {
		m.step(t, s, r)
		m.compare(t, s)
		if step%40 == 39 {
			checkClean(t, s)
			for _, release := range m.holds {
				release()
			}
			clear(m.holds)
			s = reopen(t, s)
		}
		if t.Failed() {
			t.Fatalf("step %d", step)
		}
	}
}

func (m *model) step(t *testing.T, s *Store, r *rand.Rand) {
	ctx := context.Background()
	id := fmt.Sprint("rw", r.IntN(6))
	parent := m.pick(r)
	switch op := r.IntN(10); op {
	case 0, 1, 2, 3:
		m.commit(t, s, r, parent)
	case 4:
		_, err := s.Create(ctx, CreateArgs{ID: id, Parent: parent})
		_, exists := m.rws[id]
		if exists != errdefs.IsAlreadyExists(err) || (err != nil && !exists) {
			t.Errorf("Create %s: %v, exists %v", id, err, exists)
		}
		if !exists {
			m.rws[id] = parent
		}
	case 5:
		if err := s.Remove(ctx, id); err != nil {
			t.Errorf("Remove %s: %v", id, err)
		}
		delete(m.rws, id)
	case 6:
		_, err := s.Mount(ctx, MountArgs{ID: id, Volatile: r.IntN(2) == 0})
		if _, exists := m.rws[id]; exists != (err == nil) {
			t.Errorf("Mount %s: %v", id, err)
		}
	case 7:
		if err := s.Unmount(ctx, id); err != nil {
			t.Errorf("Unmount %s: %v", id, err)
		}
	case 8:
		if release, held := m.holds[parent]; held {
			release()
			delete(m.holds, parent)
		} else if parent != "" {
			release, err := s.Hold(parent)
			if err != nil {
				t.Errorf("Hold %s: %v", parent, err)
				return
			}
			m.holds[parent] = release
		}
	case 9:
		live := []digest.Digest{m.pick(r), m.pick(r), m.pick(r)}
		if _, err := s.SweepUnused(ctx, live); err != nil {
			t.Errorf("SweepUnused: %v", err)
		}
		m.sweep(live)
	}
}

// commit makes up to three layers with few different contents, so that some exist already.
func (m *model) commit(t *testing.T, s *Store, r *rand.Rand, parent digest.Digest) {
	var drafts []*Draft
	for range 1 + r.IntN(3) {
		d, err := s.Apply(context.Background(), bytes.NewReader(buildTar(t, file("d/f", fmt.Sprint(r.IntN(4))))))
		if err != nil {
			t.Error(err)
			return
		}
		drafts = append(drafts, d)
	}
	if r.IntN(5) == 0 {
		for _, d := range drafts {
			if err := d.Discard(); err != nil {
				t.Error(err)
			}
		}
		return
	}
	layers, err := s.Commit(context.Background(), parent, drafts...)
	if err != nil {
		t.Error(err)
	}
	for _, l := range layers {
		m.layers[l.ID] = parent
		parent = l.ID
	}
}

func (m *model) pick(r *rand.Rand) digest.Digest {
	ids := slices.Sorted(maps.Keys(m.layers))
	if len(ids) == 0 || r.IntN(5) == 0 {
		return ""
	}
	return ids[r.IntN(len(ids))]
}

func (m *model) sweep(live []digest.Digest) {
	needed := map[digest.Digest]bool{}
	roots := append(slices.Collect(maps.Values(m.rws)), append(live, slices.Collect(maps.Keys(m.holds))...)...)
	for _, id := range roots {
		for ; id != ""; id = m.layers[id] {
			needed[id] = true
		}
	}
	maps.DeleteFunc(m.layers, func(id, _ digest.Digest) bool { return !needed[id] })
}

func (m *model) compare(t *testing.T, s *Store) {
	layers, rws := map[digest.Digest]digest.Digest{}, map[string]digest.Digest{}
	for _, l := range s.Layers() {
		layers[l.ID] = l.Parent
	}
	for _, rw := range s.RWs() {
		rws[rw.ID] = rw.Parent
	}
	if d := cmp.Diff(m.layers, layers); d != "" {
		t.Errorf("layers differ (-model +store):\n%s", d)
	}
	if d := cmp.Diff(m.rws, rws); d != "" {
		t.Errorf("writable layers differ (-model +store):\n%s", d)
	}
	noDrafts(t, s)
}
