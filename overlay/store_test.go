package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The vectors are the nginx and centos:test images of the transcripts in docker's documentation of
// its store.
func TestChainID(t *testing.T) {
	for _, image := range [][][2]string{
		{
			{"1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3", "1bb35e8b4de116e84b2ccf614cce4e309b6043bf2cd35543d8394edeaeb587e3"},
			{"cff9e7c67fbb49f4a3d39a66187b50cb525ac501d92b8a921b6877270b6f4ae5", "c48247a077eb9c2db74e784dce13198fac9ea62484b6073f1a553ab43feeb39b"},
			{"c29414fee8ae39b813dd7a744a2acf3e6d755fc70b2ea2bff9b707171a9fd41b", "7de008c056b4fc3bdd6011aaaf2c82c0f5e96faa9b5a038e9329662b4444dd5b"},
			{"05afaee498cfc72f71eb89da7586190efa6370883fbb51f1f8e1aab1942aa7a0", "4ef9cda1abb71e48d04cc35b0aeec61e7409e2dcb71326373e07623dc8a9f07f"},
			{"2649de4780441086779fb6d6f7645e257f90fb1729b0a36898b8b5faba0f7d86", "32aca3b86eb2d4e257a2a132c0cbb9958aeba1cd85d25ee6a393fd08f6c2288f"},
			{"215876b36153585516505977b46790e7f44f693f7473c1efaf8b2c7dac4f241a", "bac9c7cf98543a3f0091df2dbca2cdf87a1cb80d6d4c623d6c059b658562937e"},
			{"f3cecf76da4f34560262476c610533206d0f8e3344f896cc2fb0e59efcc0516a", "0a7841a283ece9e7e95603090fa7059e7850e1014b9c893d78a876ce1236efc8"},
		},
		{
			{"174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02", "174f5685490326fc0a1c0f5570b8663732189b327007e47ff13d2ca59673db02"},
			{"b6f04317756746d77962b67142f7b62957507d85b7d1f9b23867c556ea868534", "d35fb962224413183c3afa175d8f75a00837899accec39fd0ca800d054a8afac"},
		},
	} {
		var chain digest.Digest
		for _, v := range image {
			chain = chainID(chain, digest.Digest("sha256:"+v[0]))
			if chain.Encoded() != v[1] {
				t.Errorf("chain ID of %s is %s, want %s", v[0], chain.Encoded(), v[1])
			}
		}
	}
}

// TestLayoutOnDisk: a store written by Mica has exactly the file tree of a dockerd store.
func TestLayoutOnDisk(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	base := register(t, s, "", buildTar(t, file("a", "base")))
	top := register(t, s, base.ID, buildTar(t, file("b", "top")))
	id := strings.Repeat("c0", 32)
	rw, err := s.Create(ctx, CreateArgs{ID: id, Parent: top.ID})
	if err != nil {
		t.Fatal(err)
	}
	if ok, _ := regexp.MatchString(`^[0-9a-f]{64}$`, rw.MountID); !ok || rw.InitID != rw.MountID+"-init" {
		t.Errorf("mount ID %q, init ID %q", rw.MountID, rw.InitID)
	}
	link := func(cacheID string) string {
		l, err := readString(filepath.Join(s.paths.dir(cacheID), "link"))
		if err != nil {
			t.Fatal(err)
		}
		if ok, _ := regexp.MatchString(`^[A-Z2-7]{26}$`, l); !ok {
			t.Errorf("link %q", l)
		}
		return l
	}
	lb, lt, li, lw := link(base.CacheID), link(top.CacheID), link(rw.InitID), link(rw.MountID)
	db := "image/overlay2/layerdb"
	want := map[string]string{
		"image": "dir", "image/overlay2": "dir", db: "dir", db + "/sha256": "dir", db + "/mounts": "dir", db + "/tmp": "dir",
		"overlay2": "dir", "overlay2/l": "dir",
		"overlay2/l/" + lb: "-> ../" + base.CacheID + "/diff",
		"overlay2/l/" + lt: "-> ../" + top.CacheID + "/diff",
		"overlay2/l/" + li: "-> ../" + rw.InitID + "/diff",
		"overlay2/l/" + lw: "-> ../" + rw.MountID + "/diff",
	}
	put := func(dir string, files map[string]string) {
		want[dir] = "dir"
		for name, what := range files {
			want[dir+"/"+name] = what
		}
	}
	put("overlay2/"+base.CacheID, map[string]string{"diff": "dir", "diff/a": "file base", "link": "file " + lb, "committed": "file "})
	put("overlay2/"+top.CacheID, map[string]string{
		"diff": "dir", "diff/b": "file top", "link": "file " + lt, "lower": "file l/" + lb, "work": "dir", "committed": "file ",
	})
	put("overlay2/"+rw.InitID, map[string]string{
		"diff": "dir", "link": "file " + li, "lower": "file l/" + lt + ":l/" + lb, "work": "dir", "committed": "file ",
		"diff/.dockerenv": "file ", "diff/dev": "dir", "diff/dev/console": "file ", "diff/dev/pts": "dir", "diff/dev/shm": "dir",
		"diff/etc": "dir", "diff/etc/hostname": "file ", "diff/etc/hosts": "file ", "diff/etc/mtab": "-> /proc/mounts",
		"diff/etc/resolv.conf": "file ", "diff/proc": "dir", "diff/sys": "dir",
	})
	put("overlay2/"+rw.MountID, map[string]string{"diff": "dir", "link": "file " + lw, "lower": "file l/" + li + ":l/" + lt + ":l/" + lb, "work": "dir"})
	put(db+"/sha256/"+base.ID.Encoded(), map[string]string{"cache-id": "file " + base.CacheID, "diff": "file " + base.DiffID.String(), "size": "file 4"})
	put(db+"/sha256/"+top.ID.Encoded(), map[string]string{
		"cache-id": "file " + top.CacheID, "diff": "file " + top.DiffID.String(), "size": "file 3", "parent": "file " + base.ID.String(),
	})
	put(db+"/mounts/"+id, map[string]string{"mount-id": "file " + rw.MountID, "init-id": "file " + rw.InitID, "parent": "file " + top.ID.String()})

	got := tree(t, s.paths.root)
	for _, l := range []Layer{base, top} {
		name := db + "/sha256/" + l.ID.Encoded() + "/tar-split.json.gz"
		if !strings.HasPrefix(got[name], "file \x1f\x8b") {
			t.Errorf("%s is %q", name, got[name])
		}
		delete(got, name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tree differs (-want +got):\n%s", d)
	}
}

func TestOpenTwice(t *testing.T) {
	s := newStore(t)
	if _, err := Open(context.Background(), Options{Root: s.paths.root}); !errdefs.IsUnavailable(err) {
		t.Errorf("second Open: %v", err)
	}
	if _, err := Open(context.Background(), Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Open without root: %v", err)
	}
}

func TestClosed(t *testing.T) {
	s := newStore(t)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	_, aerr := s.Apply(ctx, bytes.NewReader(nil))
	_, cerr := s.Commit(ctx, "")
	_, werr := s.Create(ctx, CreateArgs{ID: "c"})
	_, perr := s.SweepUnused(ctx, nil)
	for _, err := range []error{aerr, cerr, werr, perr} {
		if !errdefs.IsUnavailable(err) {
			t.Errorf("on a closed store: %v", err)
		}
	}
}

// TestRemoveStopsAtMounts: a file system that is mounted in a removed directory keeps its files.
func TestRemoveStopsAtMounts(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	out := victim(t)
	rw := create(t, s, "c", "")
	inside := filepath.Join(s.paths.diff(rw.MountID), "volume")
	if err := errors.Join(os.Mkdir(inside, 0o755), unix.Mount(out, inside, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "c"); !errors.Is(err, unix.EXDEV) {
		t.Errorf("Remove: %v", err)
	}
	untouched(t, out)
	if err := unix.Unmount(inside, 0); err != nil {
		t.Fatal(err)
	}
	reopen(t, s)
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openStore(t, s.paths.root)
}

func TestReopen(t *testing.T) {
	s := newStore(t)
	a := register(t, s, "", buildTar(t, file("a", "1")))
	b := register(t, s, a.ID, buildTar(t, file("b", "2")))
	rw, err := s.Create(context.Background(), CreateArgs{ID: "c", Parent: b.ID})
	if err != nil {
		t.Fatal(err)
	}
	layers := s.Layers()
	s = reopen(t, s)
	if d := cmp.Diff(layers, s.Layers()); d != "" {
		t.Errorf("layers differ (-before +after):\n%s", d)
	}
	if d := cmp.Diff([]RW{rw}, s.RWs()); d != "" {
		t.Errorf("writable layers differ (-before +after):\n%s", d)
	}
}

func TestCommitSeveral(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	var drafts []*Draft
	for i := range 5 {
		d, err := s.Apply(ctx, bytes.NewReader(buildTar(t, file("f", fmt.Sprint(i)))))
		if err != nil {
			t.Fatal(err)
		}
		drafts = append(drafts, d)
	}
	if len(s.Layers()) != 0 {
		t.Error("drafts are visible")
	}
	layers, err := s.Commit(ctx, "", drafts...)
	if err != nil {
		t.Fatal(err)
	}
	parent := digest.Digest("")
	for i, l := range layers {
		if l.Parent != parent || l.DiffID != drafts[i].DiffID {
			t.Errorf("layer %d is %+v", i, l)
		}
		if err := drafts[i].Discard(); err != nil {
			t.Error(err)
		}
		parent = l.ID
	}
	if _, err := s.Commit(ctx, "", drafts[0]); !errdefs.IsInvalidArgument(err) {
		t.Errorf("second Commit of a draft: %v", err)
	}
	if _, err := s.Layer(parent); err != nil {
		t.Errorf("layer is gone after Discard: %v", err)
	}
	if _, err := s.Commit(ctx, digest.FromString("nothing")); !errdefs.IsNotFound(err) {
		t.Errorf("Commit on a missing parent: %v", err)
	}
}

// TestCommitSameTwice: any number of concurrent pulls of the same image end with one copy.
func TestCommitSameTwice(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	var wg sync.WaitGroup
	tars := [][]byte{buildTar(t, file("a", "1")), buildTar(t, file("b", "2")), buildTar(t, file("c", "3"))}
	results := make([][]Layer, 8)
	for i := range results {
		wg.Go(func() {
			var drafts []*Draft
			for _, data := range tars {
				d, err := s.Apply(ctx, bytes.NewReader(data))
				if err != nil {
					t.Error(err)
					return
				}
				drafts = append(drafts, d)
			}
			var err error
			if results[i], err = s.Commit(ctx, "", drafts...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, r := range results {
		if d := cmp.Diff(results[0], r); d != "" {
			t.Errorf("results differ:\n%s", d)
		}
	}
	if n := len(s.Layers()); n != len(tars) {
		t.Errorf("%d layers", n)
	}
	noDrafts(t, s)
}

func TestHoldAndSweep(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	a := register(t, s, "", buildTar(t, file("a", "12345")))
	b := register(t, s, a.ID, buildTar(t, file("b", "123")))
	c := register(t, s, b.ID, buildTar(t, file("c", "1")))
	d := register(t, s, a.ID, buildTar(t, file("d", "12")))
	expect := func(live []digest.Digest, want ...Layer) {
		t.Helper()
		p, err := s.SweepUnused(ctx, live)
		if err != nil {
			t.Fatal(err)
		}
		var ids []digest.Digest
		var size int64
		for _, l := range want {
			ids, size = append(ids, l.ID), size+l.Size
		}
		if !cmp.Equal(ids, p.Layers) || p.Bytes != size {
			t.Errorf("swept %v of %d bytes, want %v of %d", p.Layers, p.Bytes, ids, size)
		}
		noDrafts(t, s)
	}
	expect([]digest.Digest{c.ID, d.ID})
	if _, err := s.Hold(digest.FromString("x")); !errdefs.IsNotFound(err) {
		t.Errorf("Hold of nothing: %v", err)
	}
	release, err := s.Hold(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, CreateArgs{ID: "w", Parent: a.ID}); err != nil {
		t.Fatal(err)
	}
	expect(nil, d)
	release()
	release()
	expect(nil, c, b)
	future := chainID(a.ID, digest.FromBytes(buildTar(t, file("e", "1"))))
	release = s.Reserve(future)
	if err := s.Remove(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	e := register(t, s, a.ID, buildTar(t, file("e", "1")))
	expect(nil)
	release()
	expect(nil, e, a)
}

// TestImpliedDirectories: implied directories get their metadata from the layers below. Whiteouts,
// opaque directories and files in between count.
func TestImpliedDirectories(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	special := func(name string, uid int) entry {
		e := dir(name)
		e.Mode, e.Uid, e.PAXRecords = 0o1750, uid, map[string]string{"SCHILY.xattr.user.owner": name}
		return e
	}
	base := buildTar(t, special("./", 1), special("a", 2), special("a/b", 3), special("c", 4), special("c/d", 5), special("e", 6), file("f", ""), special("g", 8), special("g/h", 9))
	middle := buildTar(t, special("a", 12), file("c/.wh..wh..opq", ""), file(".wh.e", ""), file("g", ""))
	top := buildTar(t, file("a/b/x", ""), file("c/d/x", ""), file("e/x", ""), file("f/x", ""), file("g/h/x", ""), file("new/x", ""))
	var drafts []*Draft
	for _, data := range [][]byte{base, middle, top} {
		d, err := s.Apply(ctx, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		drafts = append(drafts, d)
	}
	layers, err := s.Commit(ctx, "", drafts...)
	if err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]uint32{".": 1, "a": 12, "a/b": 3, "c": 4, "c/d": 0, "e": 0, "f": 0, "g": 0, "g/h": 0, "new": 0} {
		path := filepath.Join(diffOf(s, layers[2]), name)
		st := stat(t, path)
		mode := uint32(0o755)
		if uid != 0 {
			mode = 0o1750
			if st.Mtim.Nano() != stamp.UnixNano() {
				t.Errorf("%s: mtime %v", name, st.Mtim)
			}
			if xattr(t, path, "user.owner") == "" {
				t.Errorf("%s: attribute is missing", name)
			}
		}
		if st.Uid != uid || st.Mode&0o7777 != mode {
			t.Errorf("%s: owner %d mode %o, want %d %o", name, st.Uid, st.Mode&0o7777, uid, mode)
		}
	}
	if xattr(t, filepath.Join(diffOf(s, layers[2]), "c"), opaqueAttr) != "" {
		t.Error("c is opaque: overlay's own attribute was inherited")
	}
}

// TestSweep: SweepAbandoned removes what a crash left. Unknown files stay, and Check reports them.
func TestSweep(t *testing.T) {
	s := newStore(t)
	l := register(t, s, "", buildTar(t, file("a", "1")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	root := s.paths.root
	orphan, orphanLink := newID(), newLink()
	kept := []string{"overlay2/u3mpr6uuekbnxjyg2n2vbwtwc/diff", "overlay2/backingFsBlockDev", "image/overlay2/layerdb/tmp/mine", "overlay2/l/strange"}
	gone := []string{"overlay2/" + orphan + "/diff/x", "overlay2/" + newID() + "-init/diff", "image/overlay2/layerdb/tmp/write-set-123/size"}
	for _, p := range append(kept, gone...) {
		if err := os.MkdirAll(filepath.Join(root, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../"+orphan+"/diff", filepath.Join(root, "overlay2/l", orphanLink)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../"+newID()+"/diff", filepath.Join(root, "overlay2/l", newLink())); err != nil {
		t.Fatal(err)
	}
	s, err := Open(context.Background(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	sweep(t, s)
	problems, err := s.Check(context.Background(), CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range problems {
		paths = append(paths, p.Path)
	}
	want := []string{"image/overlay2/layerdb/tmp/mine", "overlay2/backingFsBlockDev", "overlay2/l/strange", "overlay2/u3mpr6uuekbnxjyg2n2vbwtwc"}
	if d := cmp.Diff(want, paths); d != "" {
		t.Errorf("problems differ (-want +got):\n%s", d)
	}
	for _, p := range gone {
		if _, err := os.Lstat(filepath.Join(root, p)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s still exists", p)
		}
	}
	if got := readLayer(t, s, l.ID); len(got) == 0 {
		t.Error("layer is empty")
	}
	for _, p := range kept {
		if err := os.Remove(filepath.Join(root, p)); err != nil {
			t.Errorf("%s was touched: %v", p, err)
		}
	}
	_ = os.Remove(filepath.Join(root, "overlay2/u3mpr6uuekbnxjyg2n2vbwtwc"))
	reopen(t, s)
}

// TestAdoptDockerStore: a store of dockerd without an init layer, with a top layer not marked
// committed and an entry being removed. SweepAbandoned may remove nothing of it.
func TestAdoptDockerStore(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	a := register(t, s, "", buildTar(t, file("a", "1")))
	b := register(t, s, a.ID, buildTar(t, file("b", "2")))
	rw, err := s.Create(ctx, CreateArgs{ID: "c", Parent: b.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	root := s.paths.root
	if err := os.Remove(filepath.Join(s.paths.dir(b.CacheID), "committed")); err != nil {
		t.Fatal(err)
	}
	removing := filepath.Join(s.paths.layers(), a.ID.Encoded()+"-1234-removing")
	going := newID()
	if err := errors.Join(
		os.MkdirAll(removing, 0o755), os.MkdirAll(filepath.Join(s.paths.dir(going), "diff"), 0o755),
		os.WriteFile(filepath.Join(removing, "cache-id"), []byte(going), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, Options{Root: root}); err != nil {
		t.Fatal(err)
	}
	problems, err := s.Check(ctx, CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(problems, func(p Problem) bool { return strings.HasSuffix(p.Path, "-removing") }) {
		t.Errorf("problems %v do not name the entry that dockerd was removing", problems)
	}
	if _, err := os.Stat(s.paths.diff(going)); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]RW{rw}, s.RWs()); d != "" {
		t.Error(d)
	}
	if err := errors.Join(os.RemoveAll(removing), os.RemoveAll(s.paths.dir(going))); err != nil {
		t.Fatal(err)
	}
	reopen(t, s)
}

// TestDamage: Check finds damage of every kind. The store does not list an unusable layer, and a
// new pull repairs it.
func TestDamage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(s *Store, a, b Layer) error
		says   string
		unused bool // the layer b is not listed after a restart
	}{
		{"CacheIDEmpty", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.layer(b.ID), cacheIDName), nil, 0o644)
		}, "bad cache-id", true},
		{"CacheIDEscapes", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.layer(b.ID), cacheIDName), []byte("../../etc"), 0o644)
		}, "bad cache-id", true},
		{"DiffWrong", func(s *Store, a, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.layer(b.ID), diffIDName), []byte(a.DiffID), 0o644)
		}, "make the chain ID", true},
		{"SizeEmpty", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.layer(b.ID), sizeName), nil, 0o644)
		}, "bad size", true},
		{"SizeWrong", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.layer(b.ID), sizeName), []byte("77"), 0o644)
		}, "differs from what the store has", false},
		{"DirectoryGone", func(s *Store, _, b Layer) error { return os.RemoveAll(s.paths.dir(b.CacheID)) }, "is missing", true},
		{"ParentGone", func(s *Store, a, _ Layer) error { return os.RemoveAll(s.paths.layer(a.ID)) }, "parent", true},
		{"EntryGone", func(s *Store, _, b Layer) error { return os.RemoveAll(s.paths.layer(b.ID)) }, "is missing on disk", true},
		{"LinkGone", func(s *Store, _, b Layer) error { return os.Remove(filepath.Join(s.paths.dir(b.CacheID), linkName)) }, "has no file link", false},
		{"ShortNameElsewhere", func(s *Store, a, b Layer) error {
			l, err := readString(filepath.Join(s.paths.dir(b.CacheID), linkName))
			p := filepath.Join(s.paths.links(), l)
			return errors.Join(err, os.Remove(p), os.Symlink("../"+a.CacheID+"/diff", p))
		}, "does not link to this directory", false},
		{"LowerWrong", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(s.paths.dir(b.CacheID), lowerName), []byte("l/X"), 0o644)
		}, "expected", false},
		{"TarSplitGone", func(s *Store, _, b Layer) error { return os.Remove(filepath.Join(s.paths.layer(b.ID), tarSplitName)) }, "tar-split", false},
		{"FileChanged", func(s *Store, _, b Layer) error {
			return os.WriteFile(filepath.Join(diffOf(s, b), "b"), []byte("X"), 0o644)
		}, "checksum failed", false},
		{"FileGone", func(s *Store, _, b Layer) error { return os.Remove(filepath.Join(diffOf(s, b), "b")) }, "no such file", false},
		{"FileIsLinkOut", func(s *Store, _, b Layer) error {
			return errors.Join(os.Remove(filepath.Join(diffOf(s, b), "b")), os.Symlink("/etc/passwd", filepath.Join(diffOf(s, b), "b")))
		}, `entry "b"`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			needRoot(t)
			ctx := context.Background()
			s, err := Open(ctx, Options{Root: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			first, second := buildTar(t, file("a", "1")), buildTar(t, file("b", "2"))
			a := register(t, s, "", first)
			b := register(t, s, a.ID, second)
			if err := tc.damage(s, a, b); err != nil {
				t.Fatal(err)
			}
			problems, err := s.Check(ctx, CheckOptions{Content: true})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.What, tc.says) }) {
				t.Errorf("problems %q, none says %q", problems, tc.says)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if !tc.unused {
				return
			}
			s = openStore(t, s.paths.root) // runs Check when the test ends
			if _, err := s.Layer(b.ID); !errdefs.IsNotFound(err) {
				t.Errorf("damaged layer is listed: %v", err)
			}
			a = register(t, s, "", first)
			register(t, s, a.ID, second)
			reopen(t, s) // SweepAbandoned now removes what the damaged entry named
		})
	}
}

// TestSweepDamagedEndsWithItsContext: a SweepUnused removes the rest of a damaged layer if the
// context of an earlier one ended while it removed the layer.
func TestSweepDamagedEndsWithItsContext(t *testing.T) {
	s := newStore(t)
	l := register(t, s, "", buildTar(t, file("d/f", "1")))
	if err := errors.Join(os.WriteFile(filepath.Join(s.paths.layer(l.ID), sizeName), nil, 0o644), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.paths.root)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.SweepUnused(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("SweepUnused: %v", err)
	}
	if _, err := os.Stat(s.paths.dir(l.CacheID)); err != nil {
		t.Errorf("removed after the end of the context: %v", err)
	}
	if _, err := s.SweepUnused(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.paths.dir(l.CacheID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the damaged layer: %v", err)
	}
}

// TestSweepDamaged: SweepUnused removes damaged entries, but no layer that a container uses, even
// if its entry is damaged.
func TestSweepDamaged(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("in use: ", used), func(t *testing.T) {
			needRoot(t)
			ctx := context.Background()
			s, err := Open(ctx, Options{Root: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			a := register(t, s, "", buildTar(t, file("a", "1")))
			b := register(t, s, a.ID, buildTar(t, file("b", "2")))
			c := register(t, s, b.ID, buildTar(t, file("c", "3")))
			if used {
				create(t, s, "w", c.ID)
			}
			if err := errors.Join(os.WriteFile(filepath.Join(s.paths.layer(b.ID), sizeName), nil, 0o644), s.Close()); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(ctx, Options{Root: s.paths.root}); err != nil {
				t.Fatal(err)
			}
			if n := len(s.Layers()); n != 1 {
				t.Errorf("%d layers are listed", n)
			}
			if _, err := s.SweepUnused(ctx, nil); err != nil {
				t.Error(err)
			}
			if used { // pull again under the container
				b = register(t, s, a.ID, buildTar(t, file("b", "2")))
				register(t, s, b.ID, buildTar(t, file("c", "3")))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = Open(ctx, Options{Root: s.paths.root}); err != nil {
					t.Fatal(err)
				}
				path := mount(t, s, MountArgs{ID: "w"})
				for name, want := range map[string]string{"a": "file 1", "b": "file 2", "c": "file 3"} {
					if got := describe(t, filepath.Join(path, name)); got != want {
						t.Errorf("%s is %q under the container", name, got)
					}
				}
				if err := s.Remove(ctx, "w"); err != nil {
					t.Error(err)
				}
				if _, err := s.SweepUnused(ctx, nil); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, s.paths.root)
			noDrafts(t, s)
			if n := len(s.Layers()); n != 0 {
				t.Errorf("%d layers are left", n)
			}
		})
	}
}

func TestCheckOrphans(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s, err := Open(ctx, Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.MkdirAll(s.paths.diff(newID()), 0o755), os.Symlink("../"+newID()+"/diff", filepath.Join(s.paths.links(), newLink())),
		os.Mkdir(s.paths.writeSet("x"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	d, err := s.Apply(ctx, bytes.NewReader(nil)) // a draft is no orphan
	if err != nil {
		t.Fatal(err)
	}
	problems, err := s.Check(ctx, CheckOptions{})
	if err != nil || len(problems) != 3 {
		t.Errorf("problems %q, %v", problems, err)
	}
	if err := errors.Join(d.Discard(), s.Close()); err != nil {
		t.Fatal(err)
	}
	openStore(t, s.paths.root)
}

func TestTarStreamEndsEarly(t *testing.T) {
	s := newStore(t)
	l := register(t, s, "", buildTar(t, file("big", strings.Repeat("x", 1<<20))))
	r, err := s.TarStream(context.Background(), l.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if r, err = s.TarStream(ctx, l.ID); err != nil {
		t.Fatal(err)
	}
	cancel()
	buf := make([]byte, 1<<16)
	for err == nil {
		_, err = r.Read(buf)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("read after cancel: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.TarStream(context.Background(), digest.FromString("x")); !errdefs.IsNotFound(err) {
		t.Errorf("TarStream of nothing: %v", err)
	}
}
