package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestHardLinksOfAUFS: in layers of dockerd's AUFS driver, files with several names are links to
// files of aufsLinks.
func TestHardLinksOfAUFS(t *testing.T) {
	s := newStore(t)
	l := register(t, s, "", buildTar(t,
		dir(".wh..wh.plnk"), dir(".wh..wh.orph"),
		file(".wh..wh.plnk/101.202", "linked\n").with(func(h *tar.Header) { h.Uid, h.Mode = 7, 0o4755 }),
		file(".wh..wh.plnk/103.204", "unused\n"), file(".wh..wh.plnk/d/1.2", "nested\n"), file(".wh..wh.aufs", ""),
		dir("d"), hardlink("d/one", ".wh..wh.plnk/101.202"), hardlink("two", "/.wh..wh.plnk/101.202"),
		file("three", "x"), hardlink("three", "./.wh..wh.plnk/101.202"),
	))
	got := tree(t, s.paths.diff(l.CacheID))
	for _, name := range []string{"d/one", "two", "three"} {
		if got[name] != "file linked\n" {
			t.Errorf("%s is %q", name, got[name])
		}
	}
	if len(got) != 4 {
		t.Errorf("the layer holds %v", got)
	}
	st := stat(t, filepath.Join(s.paths.diff(l.CacheID), "two"))
	if st.Nlink != 3 || st.Uid != 7 || st.Mode&0o7777 != 0o4755 {
		t.Errorf("%d links, owner %d, mode %o", st.Nlink, st.Uid, st.Mode)
	}
	if l.Size != int64(len("linked\n")) {
		t.Errorf("size %d", l.Size)
	}
}

// TestMissingHardLinkOfAUFS: a link to a missing file of aufsLinks is refused and leaves nothing.
func TestMissingHardLinkOfAUFS(t *testing.T) {
	s := newStore(t)
	for _, entries := range [][]entry{
		{dir(".wh..wh.plnk"), hardlink("one", ".wh..wh.plnk/101.202")},
		{dir(".wh..wh.plnk/1.2"), hardlink("one", ".wh..wh.plnk/1.2")},
		{file(".wh..wh.plnk/"+strings.Repeat("n", 300), "")},
		{symlink(".wh..wh.plnk/1.2", "/etc/passwd"), hardlink("one", ".wh..wh.plnk/1.2")},
	} {
		_, err := s.Apply(context.Background(), bytes.NewReader(buildTar(t, entries...)))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", entries[len(entries)-1].Name, err)
		}
	}
	noDrafts(t, s)
}
