package overlay

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// A copy of a layer has its tar and its files on top of another parent, but shares no file with it.
func TestCopy(t *testing.T) {
	ctx, s := t.Context(), newStore(t)
	content := buildTar(t, dir("d"), file("d/f", "content"), symlink("s", "d/f"), hardlink("h", "d/f"), file("d/.wh.hidden", ""), file("implied/g", "g"))
	old := register(t, s, "", buildTar(t, file("a", "a")))
	first := register(t, s, old.ID, content)
	other := register(t, s, "", buildTar(t, file("b", "b")))
	d, err := s.Copy(ctx, first.DiffID, s.NewAllowance())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.Commit(ctx, other.ID, d)
	if err != nil {
		t.Fatal(err)
	}
	second := layers[0]
	if !d.Copied || second.DiffID != first.DiffID || second.Size != first.Size || second.Parent != other.ID || second.ID == first.ID {
		t.Errorf("got %+v as a copy of %+v", second, first)
	}
	if got := readLayer(t, s, second.ID); !bytes.Equal(got, content) {
		t.Errorf("the copy has another tar of %d bytes, want %d", len(got), len(content))
	}
	if d := cmp.Diff(tree(t, s.paths.diff(first.CacheID)), tree(t, s.paths.diff(second.CacheID))); d != "" {
		t.Error(d)
	}
	a, err := os.Stat(filepath.Join(s.paths.diff(first.CacheID), "d/f"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Stat(filepath.Join(s.paths.diff(second.CacheID), "d/f"))
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(a, b) {
		t.Error("layer and copy share a file")
	}
}

// Only a layer that exists and is unchanged is copied. After an error nothing is left.
func TestCopyRefuses(t *testing.T) {
	ctx, s := t.Context(), newStore(t)
	if _, err := s.Copy(ctx, digest.FromString("none"), s.NewAllowance()); !errdefs.IsNotFound(err) {
		t.Errorf("a diff ID without a layer: %v", err)
	}
	l := register(t, s, "", buildTar(t, file("f", "content")))
	name := filepath.Join(s.paths.diff(l.CacheID), "f")
	if err := os.WriteFile(name, []byte("CONTENT"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(ctx, l.DiffID, s.NewAllowance()); err == nil {
		t.Error("a changed layer was copied")
	}
	if err := os.WriteFile(name, []byte("content"), 0o644); err != nil { // what Check expects at the end
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.paths.overlay())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != l.CacheID && e.Name() != linksName {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// The copies for an image share an allowance, to which their bytes add nothing. They take nothing of
// another one, neither for themselves nor for the look-ups of the commit.
func TestCopiesHaveAnAllowance(t *testing.T) {
	ctx, s := t.Context(), newStore(t)
	l := register(t, s, "", buildTar(t, file("implied/f", strings.Repeat("f", 1<<20))))
	copies := newAllowance(floors{work: 3 * costLayer, kept: 1 << 20})
	s.floors = floors{work: costLayer / 2, kept: 1}
	d, err := s.Copy(ctx, l.DiffID, copies)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, l.ID, d); err != nil {
		t.Error(err)
	}
	for range 3 {
		if d, err = s.Copy(ctx, l.DiffID, copies); err != nil {
			return
		}
		if err := d.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	t.Error("four copies of a layer are within three times the cost of one")
}
