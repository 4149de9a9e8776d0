package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// bothAPIs runs a test with the new mount API and with mount(2).
func bothAPIs(t *testing.T, f func(t *testing.T, s *Store)) {
	t.Run("fsopen", func(t *testing.T) { f(t, memoryStore(t)) })
	t.Run("mount", func(t *testing.T) {
		s := memoryStore(t)
		s.oldAPI.Store(true)
		f(t, s)
	})
	t.Run("fsopen with a long root", func(t *testing.T) {
		root := filepath.Join(memoryDir(t), strings.Repeat("long", 50), strings.Repeat("path", 50))
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		f(t, openStore(t, root))
	})
}

// chain registers n layers, each with its own file and one common file.
func chain(t *testing.T, s *Store, n int) Layer {
	t.Helper()
	ctx := context.Background()
	var drafts []*Draft
	for i := range n {
		d, err := s.Apply(ctx, bytes.NewReader(buildTar(t, file(fmt.Sprint("own", i), fmt.Sprint(i)), file("common", fmt.Sprint(i)))))
		if err != nil {
			t.Fatal(err)
		}
		drafts = append(drafts, d)
	}
	layers, err := s.Commit(ctx, "", drafts...)
	if err != nil {
		t.Fatal(err)
	}
	return layers[n-1]
}

func mount(t *testing.T, s *Store, a MountArgs) string {
	t.Helper()
	path, err := s.Mount(context.Background(), a)
	if err != nil {
		t.Fatalf("Mount: %v", err)
	}
	return path
}

func create(t *testing.T, s *Store, id string, parent digest.Digest) RW {
	t.Helper()
	rw, err := s.Create(context.Background(), CreateArgs{ID: id, Parent: parent})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return rw
}

func TestMount(t *testing.T) {
	for _, n := range []int{1, 45, 125} {
		t.Run(fmt.Sprint(n, " layers"), func(t *testing.T) {
			bothAPIs(t, func(t *testing.T, s *Store) {
				ctx := context.Background()
				top := chain(t, s, n)
				rw := create(t, s, "c", top.ID)
				path := mount(t, s, MountArgs{ID: "c"})
				if want := filepath.Join(s.paths.dir(rw.MountID), "merged"); path != want || mount(t, s, MountArgs{ID: "c"}) != want {
					t.Errorf("mounted at %s, want %s both times", path, want)
				}
				for i := range n {
					if got := describe(t, filepath.Join(path, fmt.Sprint("own", i))); got != fmt.Sprint("file ", i) {
						t.Errorf("own%d is %q", i, got)
					}
				}
				if got := describe(t, filepath.Join(path, "common")); got != fmt.Sprint("file ", n-1) {
					t.Errorf("common is %q", got)
				}
				if err := errors.Join(os.WriteFile(filepath.Join(path, "new"), []byte("x"), 0o644), os.Remove(filepath.Join(path, "own0"))); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(s.Unmount(ctx, "c"), s.Unmount(ctx, "c")); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(map[string]string{"new": "file x", "own0": "whiteout"}, tree(t, s.paths.diff(rw.MountID))); d != "" {
					t.Errorf("upper differs (-want +got):\n%s", d)
				}
				mount(t, s, MountArgs{ID: "c", ReadOnly: true})
				if got := describe(t, filepath.Join(path, "new")); got != "file x" {
					t.Errorf("new is %q after a second mount", got)
				}
				if err := os.WriteFile(filepath.Join(path, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("write to a read-only mount: %v", err)
				}
				target := t.TempDir()
				if err := s.MountView(top.ID, target, ""); err != nil {
					t.Fatal(err)
				}
				if got := describe(t, filepath.Join(target, "common")); got != fmt.Sprint("file ", n-1) {
					t.Errorf("common is %q in the view", got)
				}
				if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("write to a view: %v", err)
				}
				if err := unix.Unmount(target, 0); err != nil {
					t.Error(err)
				}
				if err := errors.Join(s.Remove(ctx, "c"), s.Remove(ctx, "c")); err != nil {
					t.Error(err)
				}
				noDrafts(t, s)
			})
		})
	}
}

// TestMountManyLayers: too many layers for the options of mount(2) are an error that names the
// reason. The new API mounts them.
func TestMountManyLayers(t *testing.T) {
	s := memoryStore(t)
	create(t, s, "c", chain(t, s, 200).ID)
	s.oldAPI.Store(true)
	if _, err := s.Mount(context.Background(), MountArgs{ID: "c"}); !errdefs.IsOutOfRange(err) || !strings.Contains(err.Error(), "layers") {
		t.Errorf("Mount by mount(2): %v", err)
	}
	s.oldAPI.Store(false)
	_, err := s.Mount(context.Background(), MountArgs{ID: "c"})
	if s.oldAPI.Load() {
		t.Skip("the kernel has no lowerdir+")
	}
	if err != nil {
		t.Error(err)
	}
}

// TestMountVolatileAgain: a volatile mount that ended without an unmount, as in a crash of the
// machine, can be mounted again.
func TestMountVolatileAgain(t *testing.T) {
	bothAPIs(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		rw := create(t, s, "c", chain(t, s, 2).ID)
		for range 2 {
			path := mount(t, s, MountArgs{ID: "c", Volatile: true})
			if _, err := os.Stat(filepath.Join(s.paths.dir(rw.MountID), "work/work/incompat/volatile")); err != nil {
				t.Errorf("mount is not volatile: %v", err)
			}
			if err := os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := s.Unmount(ctx, "c"); err != nil {
				t.Fatal(err)
			}
		}
		if got := describe(t, filepath.Join(s.paths.diff(rw.MountID), "f")); got != "file x" {
			t.Errorf("f is %q", got)
		}
	})
}

func TestMountOptions(t *testing.T) {
	m := overlayMount{lowers: []string{"l/A", "l/B"}, upper: "u/diff", work: "u/work", label: "system_u:object_r:container_file_t:s0:c1,c2", volatile: true}
	want := `lowerdir=l/A:l/B,upperdir=u/diff,workdir=u/work,index=off,redirect_dir=off,metacopy=off,context="system_u:object_r:container_file_t:s0:c1,c2",volatile`
	if got := m.options(); got != want {
		t.Errorf("options %s\nwant    %s", got, want)
	}
}

// TestMountError: an error of the kernel names the mount and contains the kernel's message.
func TestMountError(t *testing.T) {
	s := newStore(t)
	create(t, s, "c", chain(t, s, 1).ID)
	if _, err := s.Mount(context.Background(), MountArgs{ID: "c", Label: "nonsense"}); err == nil {
		t.Skip("this kernel has SELinux and takes any label")
	} else if !strings.Contains(err.Error(), "mount writable layer c: ") || !strings.Contains(err.Error(), "context") {
		t.Errorf("error %v", err)
	}
	if _, err := s.Mount(context.Background(), MountArgs{ID: "x"}); !errdefs.IsNotFound(err) {
		t.Errorf("Mount of nothing: %v", err)
	}
}

// TestViewAgreesWithKernel: the view of a chain shows the same files as a mount of the chain.
func TestViewAgreesWithKernel(t *testing.T) {
	s := newStore(t)
	a := register(t, s, "", buildTar(t, dir("d"), file("d/1", ""), dir("d/sub"), file("d/sub/x", ""), dir("e"), file("e/1", ""), file("f", ""), dir("g"), file("g/1", ""), symlink("s", "d")))
	b := register(t, s, a.ID, buildTar(t, file("d/.wh.1", ""), file("e/.wh..wh..opq", ""), file("e/2", ""), dir("f"), file("f/1", ""), file("g", ""), dir("s"), file("s/1", "")))
	c := register(t, s, b.ID, buildTar(t, dir("d"), file(".wh.f", ""), dir("g"), file("g/2", "")))
	target := t.TempDir()
	if err := s.MountView(c.ID, target, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	}()
	ids, err := s.cacheIDs(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.newView(ids)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	paths := []string{"."}
	for _, d := range []string{"d", "e", "f", "g", "s", "none"} {
		paths = append(paths, d, d+"/1", d+"/2", d+"/sub", d+"/sub/x")
	}
	for _, p := range paths {
		var st unix.Stat_t
		kernel := unix.Lstat(filepath.Join(target, p), &st)
		f, err := v.lookup(p)
		if err != nil {
			t.Errorf("lookup %s: %v", p, err)
		}
		if (f != nil) != (kernel == nil) || (f != nil && f.stat.Mode != st.Mode) {
			t.Errorf("%s: view %+v, kernel %v %o", p, f, kernel, st.Mode)
		}
	}
}

// TestInitLayer: the init layer replaces the image's files of the same names. It keeps the image's
// directories unchanged.
func TestInitLayer(t *testing.T) {
	for _, tc := range []struct {
		name  string
		image []entry
		want  map[string]string // of the merged tree, besides the usual files
	}{
		{"empty image", nil, nil},
		{"files and links", []entry{
			file("etc", "a file"), dir("elsewhere"), file("dev", "a file"), file(".dockerenv", "old"), symlink("proc", "/"), symlink("sys", "elsewhere"),
		}, map[string]string{"elsewhere": "dir"}},
		{"directory instead of file", []entry{dir("etc"), dir("etc/hosts"), file("etc/hosts/x", "1"), file("etc/hostname", "old"), symlink("etc/resolv.conf", "/run/x")}, map[string]string{
			"etc/hosts": "dir", "etc/hosts/x": "file 1",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			l := register(t, s, "", buildTar(t, tc.image...))
			create(t, s, "c", l.ID)
			want := map[string]string{
				".dockerenv": "file ", "dev": "dir", "dev/console": "file ", "dev/pts": "dir", "dev/shm": "dir", "etc": "dir",
				"etc/hostname": "file ", "etc/hosts": "file ", "etc/mtab": "-> /proc/mounts", "etc/resolv.conf": "file ", "proc": "dir", "sys": "dir",
			}
			for k, v := range tc.want {
				want[k] = v
			}
			if d := cmp.Diff(want, tree(t, mount(t, s, MountArgs{ID: "c"}))); d != "" {
				t.Errorf("merged tree differs (-want +got):\n%s", d)
			}
		})
	}
	t.Run("attributes", func(t *testing.T) {
		s := newStore(t)
		etc, root := dir("etc"), dir("./")
		etc.Mode, etc.Uid, root.Mode, root.Gid = 0o2711, 5, 0o555, 6
		path := func() string {
			create(t, s, "c", register(t, s, "", buildTar(t, root, etc)).ID)
			return mount(t, s, MountArgs{ID: "c"})
		}()
		if st := stat(t, filepath.Join(path, "etc")); st.Mode&0o7777 != 0o2711 || st.Uid != 5 || st.Mtim.Nano() != stamp.UnixNano() {
			t.Errorf("etc: mode %o owner %d", st.Mode&0o7777, st.Uid)
		}
		if st := stat(t, path); st.Mode&0o7777 != 0o555 || st.Gid != 6 {
			t.Errorf("root: mode %o group %d", st.Mode&0o7777, st.Gid)
		}
		if st := stat(t, filepath.Join(path, "etc/hosts")); st.Mode&0o7777 != 0o755 {
			t.Errorf("hosts: mode %o", st.Mode&0o7777)
		}
	})
	t.Run("no image", func(t *testing.T) {
		s := newStore(t)
		create(t, s, "c", "")
		if got := tree(t, mount(t, s, MountArgs{ID: "c"})); len(got) != 12 {
			t.Errorf("merged tree %v", got)
		}
	})
}

func TestWritableErrors(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	create(t, s, "c", "")
	if _, err := s.Create(ctx, CreateArgs{ID: "c"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	if _, err := s.Create(ctx, CreateArgs{ID: "d", Parent: digest.FromString("x")}); !errdefs.IsNotFound(err) {
		t.Errorf("Create on nothing: %v", err)
	}
	for _, id := range []string{"", "../c", "a/b", ".", "..", strings.Repeat("x", 200)} {
		if _, err := s.Create(ctx, CreateArgs{ID: id}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Create %q: %v", id, err)
		}
		if err := s.Remove(ctx, id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Remove %q: %v", id, err)
		}
	}
	if _, err := s.Usage(ctx, "x"); !errdefs.IsNotFound(err) {
		t.Errorf("Usage of nothing: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Create(canceled, CreateArgs{ID: "e"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Create with a dead context: %v", err)
	}
	noDrafts(t, s)
}

// TestRemoveDamaged: a writable layer with a record that a power failure emptied can still be
// removed. SweepAbandoned removes its directories after the next Open.
func TestRemoveDamaged(t *testing.T) {
	s := newStore(t)
	rw := create(t, s, "c", "")
	if err := os.WriteFile(filepath.Join(s.paths.mount("c"), mountIDName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(context.Background(), Options{Root: s.paths.root})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.RWs()) != 0 {
		t.Error("damaged layer is listed")
	}
	if _, err := os.Stat(s.paths.diff(rw.MountID)); err != nil {
		t.Errorf("swept although an entry is unreadable: %v", err)
	}
	if err := s.Remove(context.Background(), "c"); err != nil {
		t.Error(err)
	}
	s = reopen(t, s)
	checkClean(t, s)
	if _, err := os.Stat(s.paths.diff(rw.MountID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not swept: %v", err)
	}
}

func TestUsage(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	rw := create(t, s, "c", "")
	empty, err := s.Usage(ctx, "c")
	if err != nil || empty.Inodes != 1 {
		t.Errorf("usage %+v, %v", empty, err)
	}
	upper := s.paths.diff(rw.MountID)
	if err := errors.Join(
		os.MkdirAll(filepath.Join(upper, "a/b"), 0o755), os.WriteFile(filepath.Join(upper, "a/f"), make([]byte, 100<<10), 0o644),
		os.Link(filepath.Join(upper, "a/f"), filepath.Join(upper, "a/b/g")), os.Symlink("x", filepath.Join(upper, "s")),
	); err != nil {
		t.Fatal(err)
	}
	got, err := s.Usage(ctx, "c")
	if err != nil || got.Inodes != 5 || got.Bytes < 100<<10 || got.Bytes > empty.Bytes+120<<10 {
		t.Errorf("usage %+v, %v (empty %+v)", got, err, empty)
	}
}

// TestUnexpectedMount: Check reports a mount that the store did not make. SweepAbandoned unmounts
// one below a directory that it removes.
func TestUnexpectedMount(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	l := chain(t, s, 1)
	extra := s.paths.diff(l.CacheID)
	if err := unix.Mount("none", extra, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	problems, err := s.Check(ctx, CheckOptions{})
	if err != nil || !slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.What, "mount") }) {
		t.Errorf("problems %q, %v", problems, err)
	}
	if err := unix.Unmount(extra, 0); err != nil {
		t.Fatal(err)
	}
	rw := create(t, s, "c", l.ID)
	path := mount(t, s, MountArgs{ID: "c"})
	if err := errors.Join(s.Close(), os.RemoveAll(s.paths.mount("c"))); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.paths.root)
	checkClean(t, s)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s of %s still exists: %v", path, rw.ID, err)
	}
}
