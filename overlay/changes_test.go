package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mounted creates and mounts a writable layer on the parent.
func mounted(tb testing.TB, s *Store, id string, parent Layer) string {
	tb.Helper()
	if _, err := s.Create(context.Background(), CreateArgs{ID: id, Parent: parent.ID}); err != nil {
		tb.Fatal(err)
	}
	root, err := s.Mount(context.Background(), MountArgs{ID: id, Volatile: true})
	if err != nil {
		tb.Fatal(err)
	}
	return root
}

func changedBase(tb testing.TB, s *Store) Layer {
	return register(tb, s, "", buildTar(tb,
		dir("etc"), file("etc/hosts", "image"), file("etc/passwd", "root"), file("gone", "x"), dir("cache"), file("cache/old", "1"),
		dir("cache/sub"), file("cache/sub/deep", "2"), dir("tree"), file("tree/a", "a"), dir("tree/b"), file("tree/b/c", "c"),
		file("becomes-dir", "f"), dir("becomes-file"), file("becomes-file/x", "x"), symlink("link", "etc"),
	))
}

const changeScript = `
	echo changed >etc/hosts; chmod 600 etc/hosts
	rm gone; rm tree/b/c
	rm -r cache; mkdir cache; echo new >cache/new; mkdir cache/sub; echo other >cache/sub/other
	rm becomes-dir; mkdir becomes-dir; echo in >becomes-dir/in
	rm -r becomes-file; echo now >becomes-file
	rm link; ln -s tree link
	mkdir -p new/deep; echo file >new/deep/file; ln new/deep/file new/second; mkfifo new/fifo; mknod new/null c 1 3
	chown -R 7:8 new; chmod 4755 new/second; touch -d 2001-02-03 new/deep
	truncate -s 3M new/sparse
`

// TestChangesAgain: the output of Changes makes any other layer on the same image look the same.
func TestChangesAgain(t *testing.T) {
	s := newStore(t)
	base := changedBase(t, s)
	was := mounted(t, s, "was", base)
	if out, err := exec.Command("/bin/sh", "-ec", "cd "+was+changeScript).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if l, err := unixListen(filepath.Join(was, "new/socket")); err != nil {
		t.Fatal(err)
	} else {
		defer func() { _ = unix.Close(l) }()
	}
	if err := unix.Setxattr(filepath.Join(was, "new/deep/file"), "user.colour", []byte("blue"), 0); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Changes(cancelled, "was", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Changes after the end of its context = %v", err)
	}
	var changes bytes.Buffer
	deleted, err := s.Changes(t.Context(), "was", &changes)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"gone", "tree/b/c", "cache/old", "cache/sub/deep"} {
		if !slices.Contains(deleted, p) {
			t.Errorf("%s is not among the deleted %q", p, deleted)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(entriesOf(t, changes.Bytes()))) {
		if strings.Contains(name, whiteoutPrefix) || strings.Contains(name, "socket") || strings.HasPrefix(name, "/") {
			t.Errorf("the tar has %q", name)
		}
	}
	now := mounted(t, s, "now", base)
	args := UnpackArgs{Tar: &changes, Deleted: deleted, Limit: 1 << 30}
	if err := s.ApplyChanges(t.Context(), "now", args); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(was, "new/socket")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tree(t, was), tree(t, now)); diff != "" {
		t.Errorf("the layers differ (-was +now):\n%s", diff)
	}
	sameInodes(t, was, now, "etc/hosts", "new/second", "new/deep/file", "new/deep", "new/sparse", "new/null")
	if a, b := stat(t, filepath.Join(now, "new/second")), stat(t, filepath.Join(now, "new/deep/file")); a.Ino != b.Ino {
		t.Error("the names of one file are two files now")
	}
	if st := stat(t, filepath.Join(now, "new/sparse")); st.Blocks > 64 {
		t.Errorf("a sparse file takes %d blocks", st.Blocks)
	}
}

func entriesOf(t *testing.T, data []byte) map[string]*tar.Header {
	t.Helper()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}

// sameInodes compares the metadata that describe leaves out.
func sameInodes(t *testing.T, was, now string, names ...string) {
	t.Helper()
	for _, name := range names {
		a, b := stat(t, filepath.Join(was, name)), stat(t, filepath.Join(now, name))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Size != b.Size {
			t.Errorf("%s: was mode %o owner %d:%d time %v size %d, is %o %d:%d %v %d", name,
				a.Mode, a.Uid, a.Gid, a.Mtim, a.Size, b.Mode, b.Uid, b.Gid, b.Mtim, b.Size)
		}
		if a, b := xattr(t, filepath.Join(was, name), "user.colour"), xattr(t, filepath.Join(now, name), "user.colour"); a != b {
			t.Errorf("%s: attribute was %q, is %q", name, a, b)
		}
	}
}

func unixListen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		// The path of the test's directory is too long for a socket address.
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fdPath(dir, filepath.Base(path))})
		_ = unix.Close(dir)
	}
	return fd, err
}

// TestApplyWhiteouts reads changes in the form of a layer, as in containerd's checkpoints.
func TestApplyWhiteouts(t *testing.T) {
	s := newStore(t)
	root := mounted(t, s, "rw", changedBase(t, s))
	data := buildTar(t,
		file(".wh.gone", ""), file("cache/new", "n"), file("cache/.wh..wh..opq", ""), file("tree/.wh.a", ""), file("tree/.wh.none", ""),
		file("tree/kept", "k"), file("tree/.wh.kept", ""), file(".wh..wh.plnk", ""),
	)
	if err := s.ApplyChanges(t.Context(), "rw", UnpackArgs{Tar: bytes.NewReader(data), Limit: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	got := tree(t, root)
	for name, want := range map[string]bool{
		"gone": false, "cache/new": true, "cache/old": false, "cache/sub": false, "tree/a": false, "tree/b/c": true, "tree/kept": true, "etc/hosts": true,
	} {
		if _, ok := got[name]; ok != want {
			t.Errorf("%s exists: %v", name, ok)
		}
	}
}

// hostile returns tars that must be refused, by attack.
func hostile(tb testing.TB, outside string) map[string][]entry {
	tb.Helper()
	return map[string][]entry{
		"name leaves the root":           {file("../passwd", "evil")},
		"name leaves the root inside":    {file("a/../../passwd", "evil")},
		"through a link of the tar":      {symlink("s", outside), file("s/passwd", "evil")},
		"through a link of the image":    {file("link/evil", "evil")},
		"link of the image, relative":    {symlink("up", "../../../../../../../.."), file("up/evil", "x")},
		"hard link outside":              {hardlink("h", outside+"/passwd")},
		"hard link through a link":       {symlink("s", outside), hardlink("h", "s/passwd")},
		"hard link to a directory":       {dir("d"), hardlink("h", "d")},
		"hard link to the image's file":  {hardlink("h", "etc/passwd")},
		"below a file":                   {file("etc/hosts/x", "evil")},
		"whiteout of the root":           {file(".wh...", "")},
		"whiteout as a device":           {device("etc/hosts", tar.TypeChar, 0, 0)},
		"device out of range":            {device("d", tar.TypeBlock, 1<<13, 0)},
		"too long a name":                {file(strings.Repeat("n", 256), "")},
		"owner out of range":             {file("f", "").with(func(h *tar.Header) { h.Uid = 1<<32 - 1 })},
		"more content than allowed":      {file("f", strings.Repeat("x", 1<<20))},
		"many small files":               slices.Repeat([]entry{file("f", strings.Repeat("x", 1<<15))}, 9),
		"the root as a file":             {file(".", "x")},
		"symbolic link without a target": {symlink("s", "")},
	}
}

// TestUnpackRefuses: a hostile tar is refused, and changes nothing outside.
func TestUnpackRefuses(t *testing.T) {
	s := newStore(t)
	base := changedBase(t, s)
	out := victim(t)
	for name, entries := range hostile(t, out) {
		t.Run(name, func(t *testing.T) {
			id := "rw-" + strings.ReplaceAll(name, " ", "-")
			mounted(t, s, id, base)
			err := s.ApplyChanges(t.Context(), id, UnpackArgs{Tar: bytes.NewReader(buildTar(t, entries...)), Limit: 1 << 18})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("ApplyChanges = %v", err)
			}
			untouched(t, out)
		})
	}
	mounted(t, s, "rw", base)
	for _, p := range []string{"../passwd", ".", "", "/", "link/hosts"} {
		err := s.ApplyChanges(t.Context(), "rw", UnpackArgs{Tar: bytes.NewReader(buildTar(t)), Deleted: []string{p}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("delete %q = %v", p, err)
		}
	}
	if err := s.ApplyChanges(t.Context(), "rw", UnpackArgs{Tar: strings.NewReader(strings.Repeat("no tar", 1000))}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an input that is no tar = %v", err)
	}
	if err := s.ApplyChanges(t.Context(), "none", UnpackArgs{}); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown layer = %v", err)
	}
	if _, err := s.Changes(t.Context(), "none", io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("changes of an unknown layer = %v", err)
	}
	if err := s.Unmount(t.Context(), "rw"); err != nil {
		t.Fatal(err)
	}
	if err := s.ApplyChanges(t.Context(), "rw", UnpackArgs{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a layer that is not mounted = %v", err)
	}
}

func TestPackTreeAgain(t *testing.T) {
	needRoot(t)
	was, now := t.TempDir(), t.TempDir()
	if out, err := exec.Command("/bin/sh", "-ec", "cd "+was+"; mkdir -p etc cache tree/b becomes-file; touch gone tree/b/c becomes-dir link etc/hosts"+changeScript).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var packed bytes.Buffer
	if err := PackTree(t.Context(), was, &packed); err != nil {
		t.Fatal(err)
	}
	if err := UnpackTree(t.Context(), now, UnpackArgs{Tar: &packed, Limit: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tree(t, was), tree(t, now)); diff != "" {
		t.Errorf("the trees differ (-was +now):\n%s", diff)
	}
	sameInodes(t, was, now, "etc/hosts", "new/second", "new/deep")
}

// TestUnpackKeeps: with Keep, new files are added and existing files stay unchanged.
func TestUnpackKeeps(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "old"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := buildTar(t, dir("."), file("old", "new"), file("fresh", "new"), dir("d"), file("d/f", "new"))
	if err := UnpackTree(t.Context(), root, UnpackArgs{Tar: bytes.NewReader(data), Limit: 1 << 20, Keep: true}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"old": "file old", "fresh": "file new", "d": "dir", "d/f": "file new"}
	if diff := cmp.Diff(want, tree(t, root)); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
}

// TestUnpackEndsWithItsContext: what a tar or a list deletes is kept if the call's context ends
// before it is reached.
func TestUnpackEndsWithItsContext(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		entries []entry
		deleted []string
		rest    int // bytes of the tar that are not read yet when the context ends; its end has two blocks
	}{
		"whiteout":           {[]entry{file(".wh.old", "")}, nil, 2 * tarBlock},
		"opaque directory":   {[]entry{file(".wh..wh..opq", "")}, nil, 2 * tarBlock},
		"replaced by a file": {[]entry{file("old", "")}, nil, 2 * tarBlock},
		"list":               {nil, []string{"old"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "old/below"), 0o700); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			data := buildTar(t, c.entries...)
			in := &callAfter{from: bytes.NewReader(data), left: len(data) - c.rest, call: cancel}
			err := UnpackTree(ctx, root, UnpackArgs{Tar: in, Limit: 1 << 20, Deleted: c.deleted})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("UnpackTree: %v", err)
			}
			if _, err := os.Stat(filepath.Join(root, "old/below")); err != nil {
				t.Errorf("deleted after the end of the context: %v", err)
			}
		})
	}
}

// callAfter calls a function when a number of bytes has been read.
type callAfter struct {
	from io.Reader
	left int
	call func()
}

func (r *callAfter) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if r.left -= n; r.left <= 0 {
		r.call()
	}
	return n, err
}

// FuzzUnpack: for any bytes, nothing outside the directory changes.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	out := victim(f)
	for _, entries := range hostile(f, out) {
		f.Add(buildTar(f, entries...))
	}
	f.Add(buildTar(f, dir("d"), file("d/f", "x"), hardlink("h", "d/f"), symlink("s", "d"), file(".wh.d", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		if err := os.Symlink(out, filepath.Join(root, "link")); err != nil {
			t.Fatal(err)
		}
		_ = UnpackTree(t.Context(), root, UnpackArgs{Tar: bytes.NewReader(data), Limit: 1 << 20}) // refused or not
		untouched(t, out)
	})
}
