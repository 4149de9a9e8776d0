package overlay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

// randomLayer has directories, files, whiteouts and opaque directories under few names.
func randomLayer(r *rand.Rand) []entry {
	var entries []entry
	for range r.IntN(6) {
		name := randomPath(r)
		switch dirname, base := path.Split(name); r.IntN(5) {
		case 0:
			entries = append(entries, file(name, ""))
		case 1:
			entries = append(entries, file(dirname+whiteoutPrefix+base, ""))
		case 2:
			entries = append(entries, file(name+"/"+opaqueName, ""))
		default:
			entries = append(entries, dir(name))
		}
	}
	return entries
}

func randomPath(r *rand.Rand) string {
	parts := make([]string, 1+r.IntN(3))
	for i := range parts {
		parts[i] = string(rune('a' + r.IntN(2)))
	}
	return strings.Join(parts, "/")
}

// find looks up a directory and returns the roots that make it up, top first.
func (s *stack) find(p string) ([]int, error) {
	at, name := &s.top, ""
	for _, base := range strings.Split(p, "/") {
		name = path.Join(name, base)
		var err error
		if at, err = s.child(at, base, name); err != nil || len(at.parts) == 0 {
			return nil, err
		}
	}
	parts := slices.Clone(at.parts)
	slices.Reverse(parts)
	return parts, nil
}

// TestStackIsTheView: at any height, a stack and a view of the same layers make up the same
// directories, independent of earlier lookups.
func TestStackIsTheView(t *testing.T) {
	s := memoryStore(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		under := s.newStack(nil, nil)
		var ids []string // top first
		var drafts []*Draft
		for len(drafts) < 8 {
			d, err := s.Apply(t.Context(), bytes.NewReader(buildTar(t, randomLayer(r)...)))
			if err != nil {
				continue // a file where a directory must be
			}
			drafts, ids = append(drafts, d), append([]string{d.CacheID}, ids...)
			under.push(d.CacheID)
			compareWithView(t, under, s, ids, r)
		}
		under.close()
		for _, d := range drafts {
			if err := d.Discard(); err != nil {
				t.Error(err)
			}
		}
	}
}

func compareWithView(t *testing.T, under *stack, s *Store, ids []string, r *rand.Rand) {
	t.Helper()
	if err := under.open(); err != nil {
		t.Fatal(err)
	}
	v, err := s.newView(ids)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	for range 5 {
		p := randomPath(r)
		got, err := under.find(p)
		if err != nil {
			t.Fatal(err)
		}
		top, want, err := v.walk(p)
		if err != nil {
			t.Fatal(err)
		}
		if top == nil || !top.isDir() {
			want = nil
		}
		for i, part := range want {
			want[i] = len(ids) - 1 - part // the view's first is the top
		}
		if !slices.Equal(got, want) {
			t.Errorf("layers of %s: got %v, want %v", p, got, want)
		}
	}
}

// TestSharedImpliedDirectoriesAreCheap: if many layers imply the same directory, each layer is
// looked up only once for it.
func TestSharedImpliedDirectoriesAreCheap(t *testing.T) {
	const layers, dirs = 60, 40
	s := memoryStore(t)
	var drafts []*Draft
	for i := range layers {
		var entries []entry
		for k := range dirs {
			entries = append(entries, file(fmt.Sprintf("usr/d%d/f%d", k, i), ""))
		}
		d, err := s.Apply(t.Context(), bytes.NewReader(buildTar(t, entries...)))
		if err != nil {
			t.Fatal(err)
		}
		drafts = append(drafts, d)
	}
	counted := s.newLookups(drafts)
	s.floors.work += counted.work - counted.may + layers*(dirs+2)*(costLookup+4*costStep)
	if _, err := s.Commit(t.Context(), "", drafts...); err != nil {
		t.Error(err)
	}
}
