package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// abandonDraft leaves the draft of a process that died while it extracted a layer with many
// directories.
func abandonDraft(t *testing.T, s *Store, directories int) (id string) {
	t.Helper()
	id = newID()
	if err := s.makeDraft(id); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../"+id+"/"+diffName, filepath.Join(s.paths.links(), newLink())); err != nil {
		t.Fatal(err)
	}
	for n := range directories {
		if err := os.MkdirAll(filepath.Join(s.paths.diff(id), fmt.Sprintf("d%d", n), "below"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// countNames counts the names below a directory.
func countNames(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(string, os.DirEntry, error) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOpenDeletesNoAbandonedDraft: Open removes nothing that a dead process left, and Check does
// not report it. SweepAbandoned removes it, and continues after an interrupted SweepAbandoned.
func TestOpenDeletesNoAbandonedDraft(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	const directories = 3000
	id := abandonDraft(t, s, directories)
	root := s.paths.root
	there := countNames(t, root)
	s, err := Open(context.Background(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if n := countNames(t, root); n != there {
		t.Errorf("Open deleted %d names", there-n)
	}
	checkClean(t, s)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.SweepAbandoned(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("SweepAbandoned with an ended context: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := countNames(t, root); n != there {
		t.Errorf("a SweepAbandoned with an ended context deleted %d names", there-n)
	}
	for n := range directories / 2 { // as if killed in the middle
		if err := os.RemoveAll(filepath.Join(s.paths.diff(id), fmt.Sprintf("d%d", n))); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, root) // runs SweepAbandoned
	noDrafts(t, s)
	checkClean(t, s)
}

// TestRemoveTreeEndsWithItsContext: the removal of a tree ends with its context, between two
// directories.
func TestRemoveTreeEndsWithItsContext(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	id := abandonDraft(t, s, 100)
	ctx := endsAfter{context.Background(), new(int), 50}
	if err := removeTree(ctx, unix.AT_FDCWD, s.paths.diff(id)); !errors.Is(err, context.Canceled) {
		t.Errorf("removeTree: %v", err)
	}
	if n := countNames(t, s.paths.diff(id)); n < 100 || n == 201 {
		t.Errorf("%d names are left of 201", n)
	}
	s.abandoned = abandoned{directories: []string{id}, sets: []string{s.paths.writeSet(id)}}
	links, err := readNames(s.paths.links())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		s.abandoned.links = append(s.abandoned.links, filepath.Join(s.paths.links(), l))
	}
	sweep(t, s)
	noDrafts(t, s)
}

// endsAfter is a context that ends after a number of calls of Err.
type endsAfter struct {
	context.Context
	asked *int
	after int
}

func (e endsAfter) Err() error {
	if *e.asked++; *e.asked > e.after {
		return context.Canceled
	}
	return nil
}
