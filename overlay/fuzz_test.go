package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzApply: for any bytes, nothing outside the store changes, and a refused layer leaves no files.
// An accepted layer has the digest of the bytes, and TarStream returns the same bytes.
func FuzzApply(f *testing.F) {
	out := victim(f)
	for _, entries := range [][]entry{
		{dir("d"), file("d/f", "content"), hardlink("h", "d/f"), symlink("s", "d"), file("s/x", "y")},
		{file(".wh.x", ""), file("x/a", "1"), file("x/.wh..wh..opq", ""), file("x", "over")},
		{symlink("s", out), file("s/passwd", "evil"), hardlink("h", "s/passwd"), file("s", "x")},
		{device("n", tar.TypeChar, 1, 3), device("p", tar.TypeFifo, 0, 0), file("n", "x"), file("../passwd", "evil")},
		{dir("a"), file("a/b", "1"), file("a", "2"), dir("a"), file("a/b", "3").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y", "SCHILY.xattr.trusted.overlay.opaque": "y"}
		})},
	} {
		f.Add(buildTar(f, entries...))
	}
	f.Add(sparseBomb(f))
	s := memoryStore(f) // where a sync takes no time
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx := context.Background()
		l, err := s.Register(ctx, "", digest.FromBytes(data), bytes.NewReader(data))
		if err == nil && !bytes.Equal(readLayer(t, s, l.ID), data) {
			t.Error("TarStream returns other bytes")
		}
		if _, err := s.SweepUnused(ctx, nil); err != nil {
			t.Error(err)
		}
		noDrafts(t, s)
		untouched(t, out)
	})
}
