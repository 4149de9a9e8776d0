package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestApplyTree(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	longTree := map[string]string{long: "file deep"}
	for d := filepath.Dir(long); d != "."; d = filepath.Dir(d) {
		longTree[d] = "dir"
	}
	for _, tc := range []struct {
		name    string
		entries []entry
		want    map[string]string
	}{
		{"nothing", nil, map[string]string{}},
		{
			"one of each type",
			[]entry{
				dir("d/"), file("d/f", "content"), file("d/empty", ""), symlink("d/s", "f"), symlink("dangling", "/no/where"),
				hardlink("d/h", "d/f"), device("null", tar.TypeChar, 1, 3), device("loop", tar.TypeBlock, 7, 9), device("pipe", tar.TypeFifo, 0, 0),
			},
			map[string]string{
				"d": "dir", "d/f": "file content", "d/empty": "file ", "d/s": "-> f", "dangling": "-> /no/where",
				"d/h": "file content", "null": "char 1:3", "loop": "block 7:9", "pipe": "fifo",
			},
		},
		{"names with dot and slash", []entry{dir("./"), dir("./d"), file("./d/./a", "1"), file("/d/b", "2"), file("d//c", "3"), file("d/x/../e", "4")}, map[string]string{
			"d": "dir", "d/a": "file 1", "d/b": "file 2", "d/c": "file 3", "d/e": "file 4",
		}},
		{"implied parents", []entry{file("a/b/c", "x")}, map[string]string{"a": "dir", "a/b": "dir", "a/b/c": "file x"}},
		{"long PAX names", []entry{file(long, "deep")}, longTree},
		{"long GNU names", []entry{file(long, "deep").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, time.Unix(1, 0) })}, longTree},
		{"name that is not UTF-8", []entry{file("caf\xe9", "x").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, time.Unix(1, 0) })}, map[string]string{"caf\xe9": "file x"}},
		{"name with JSON in it", []entry{file(`a"b\c<d>&e`, "x"), file("new\nline", "y")}, map[string]string{`a"b\c<d>&e`: "file x", "new\nline": "file y"}},
		{"whiteout", []entry{dir("d"), file("d/.wh.gone", ""), file(".wh.top", "")}, map[string]string{"d": "dir", "d/gone": "whiteout", "top": "whiteout"}},
		{"opaque directory", []entry{dir("d"), file("d/.wh..wh..opq", ""), file("d/new", "n")}, map[string]string{"d": "opaque", "d/new": "file n"}},
		{"opaque after content", []entry{dir("d"), file("d/new", "n"), file("d/.wh..wh..opq", "")}, map[string]string{"d": "opaque", "d/new": "file n"}},
		{"opaque in implied directory", []entry{file("d/.wh..wh..opq", "")}, map[string]string{"d": "opaque"}},
		{"whiteout then file", []entry{file(".wh.x", ""), file("x", "new")}, map[string]string{"x": "file new"}},
		{"file then whiteout", []entry{file("x", "new"), file(".wh.x", "")}, map[string]string{"x": "file new"}},
		{"whiteout then directory", []entry{file(".wh.x", ""), dir("x"), file("x/a", "1")}, map[string]string{"x": "opaque", "x/a": "file 1"}},
		{"whiteout then implied directory", []entry{file(".wh.x", ""), file("x/a", "1")}, map[string]string{"x": "opaque", "x/a": "file 1"}},
		{"directory then whiteout", []entry{dir("x"), file("x/a", "1"), file(".wh.x", "")}, map[string]string{"x": "opaque", "x/a": "file 1"}},
		{"whiteout twice", []entry{file(".wh.x", ""), file(".wh.x", "")}, map[string]string{"x": "whiteout"}},
		{"whiteout with content", []entry{file(".wh.x", "surprise")}, map[string]string{"x": "whiteout"}},
		{"AUFS files", []entry{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "data"), file(".wh..wh.aufs", ""), dir(".wh..wh.orph"), file("a", "1")}, map[string]string{"a": "file 1"}},
		{"wh in the middle of a name", []entry{file("a.wh.b", "1")}, map[string]string{"a.wh.b": "file 1"}},
		{"file over file", []entry{file("a", "first"), file("a", "second")}, map[string]string{"a": "file second"}},
		{"file over file by another name", []entry{file("a", "first"), file("/a", "second"), file("./a", "third")}, map[string]string{"a": "file third"}},
		{"file over hard link keeps the other", []entry{file("a", "one"), hardlink("b", "a"), file("a", "two")}, map[string]string{"a": "file two", "b": "file one"}},
		{"file over symlink", []entry{symlink("a", "b"), file("b", "keep"), file("a", "new")}, map[string]string{"a": "file new", "b": "file keep"}},
		{"symlink over file", []entry{file("a", "x"), symlink("a", "b")}, map[string]string{"a": "-> b"}},
		{"file over directory", []entry{dir("a"), dir("a/b"), file("a/b/c", "lost"), file("a", "new")}, map[string]string{"a": "file new"}},
		{"directory over file", []entry{file("a", "lost"), dir("a"), file("a/b", "new")}, map[string]string{"a": "dir", "a/b": "file new"}},
		{"directory over symlink", []entry{symlink("a", "b"), dir("a"), file("a/x", "1")}, map[string]string{"a": "dir", "a/x": "file 1"}},
		{"directory over directory", []entry{dir("a"), file("a/x", "1"), dir("a"), file("a/y", "2")}, map[string]string{"a": "dir", "a/x": "file 1", "a/y": "file 2"}},
		{
			"back and forth",
			[]entry{dir("a"), file("a/x", "one"), file("a", "two"), dir("a"), file("a/x", "three"), file("a/x", "four"), symlink("a", "x"), dir("a"), file("a/z", "five")},
			map[string]string{"a": "dir", "a/z": "file five"},
		},
		{"device over file over fifo", []entry{device("a", tar.TypeFifo, 0, 0), file("a", "x"), device("a", tar.TypeChar, 1, 5)}, map[string]string{"a": "char 1:5"}},
		{"relative symlink as parent", []entry{dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/so", "elf")}, map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "-> usr/lib", "usr/lib/so": "file elf"}},
		{"dangling symlink as parent", []entry{symlink("lib", "usr/lib"), file("lib/so", "elf")}, map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "-> usr/lib", "usr/lib/so": "file elf"}},
		{"hard link through a symlink", []entry{dir("d"), file("d/f", "x"), symlink("s", "d"), hardlink("h", "s/f")}, map[string]string{"d": "dir", "d/f": "file x", "s": "-> d", "h": "file x"}},
		{"hard link to a symlink", []entry{symlink("s", "/etc/passwd"), hardlink("h", "s")}, map[string]string{"s": "-> /etc/passwd", "h": "-> /etc/passwd"}},
		{"big file", []entry{file("big", strings.Repeat("0123456789abcdef", 1<<17))}, map[string]string{"big": "file " + strings.Repeat("0123456789abcdef", 1<<17)}},
		{"big file of exact buffers", []entry{file("big", strings.Repeat("x", 3*bufferSize))}, map[string]string{"big": "file " + strings.Repeat("x", 3*bufferSize)}},
		{"file of exactly one buffer", []entry{file("one", strings.Repeat("x", bufferSize)), file("more", strings.Repeat("x", bufferSize+1))}, map[string]string{
			"one": "file " + strings.Repeat("x", bufferSize), "more": "file " + strings.Repeat("x", bufferSize+1),
		}},
		{"global header", []entry{
			{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "hello"}}},
			{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "again"}}},
			file("a", "1"),
		}, map[string]string{"a": "file 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			l := register(t, s, "", buildTar(t, tc.entries...))
			if d := cmp.Diff(tc.want, tree(t, diffOf(s, l))); d != "" {
				t.Errorf("tree differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestApplyMeta(t *testing.T) {
	s := newStore(t)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
	when := time.Unix(1234567890, 987654321)
	set := func(h *tar.Header) { h.Uid, h.Gid, h.Mode, h.ModTime = 1000, 2000, 0o6751, when }
	l := register(t, s, "", buildTar(t,
		dir("./").with(func(h *tar.Header) { h.Mode, h.Uid, h.ModTime = 0o1770, 77, when }),
		dir("d").with(func(h *tar.Header) { set(h); h.PAXRecords = map[string]string{"SCHILY.xattr.user.dir": "D"} }),
		file("d/f", "x").with(func(h *tar.Header) {
			set(h)
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.bytes": "a\x00b",
				"SCHILY.xattr.trusted.overlay.redirect": "/etc",
			}
		}),
		file("d/none", "").with(func(h *tar.Header) { h.Mode = 0 }),
		symlink("d/s", "f").with(set),
		device("d/p", tar.TypeFifo, 0, 0).with(set),
		file("old", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(-5, 0) }),
		dir("setgid").with(func(h *tar.Header) { h.Gid, h.Mode = 50, 0o2775 }),
		file("setgid/f", "x"),
	))
	base := diffOf(s, l)
	for name, want := range map[string]struct {
		mode, uid, gid uint32
		mtime          time.Time
	}{
		".":        {0o1770, 77, 0, when},
		"d":        {0o6751, 1000, 2000, when},
		"d/f":      {0o6751, 1000, 2000, when},
		"d/none":   {0, 0, 0, stamp},
		"d/s":      {0o777, 1000, 2000, when},
		"d/p":      {0o6751, 1000, 2000, when},
		"old":      {0o644, 0, 0, time.Unix(0, 0)},
		"setgid/f": {0o644, 0, 0, stamp},
	} {
		st := stat(t, filepath.Join(base, name))
		if st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: mode %o owner %d:%d, want %o %d:%d", name, st.Mode&0o7777, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(want.mtime) {
			t.Errorf("%s: mtime %v, want %v", name, got, want.mtime)
		}
	}
	for _, x := range [][3]string{
		{"d", "user.dir", "D"},
		{"d/f", "security.capability", capability},
		{"d/f", "user.bytes", "a\x00b"},
		{"d/f", "trusted.overlay.redirect", ""},
	} {
		if got := xattr(t, filepath.Join(base, x[0]), x[1]); got != x[2] {
			t.Errorf("%s: attribute %s is %q, want %q", x[0], x[1], got, x[2])
		}
	}
}

func TestApplySize(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []entry
		want    int64
	}{
		{"files and links", []entry{dir("d"), file("d/a", "12345"), symlink("s", "123"), hardlink("h", "d/a"), file(".wh.x", "")}, 8},
		{"replaced", []entry{file("a", "12345"), file("a", "12")}, 2},
		{"replaced with a hard link left", []entry{file("a", "12345"), hardlink("b", "a"), file("a", "12")}, 7},
		{"replaced directory", []entry{dir("d"), file("d/a", "12345"), file("d", "1")}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			if l := register(t, s, "", buildTar(t, tc.entries...)); l.Size != tc.want {
				t.Errorf("size %d, want %d", l.Size, tc.want)
			}
		})
	}
}

// run makes a tar with a real program.
func run(tb testing.TB, dir, name string, args ...string) []byte {
	tb.Helper()
	if _, err := exec.LookPath(name); err != nil {
		tb.Skipf("needs %s", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %v: %v: %s", name, args, err, stderr.String())
	}
	return out
}

// TestApplySparse: a file of 2 GiB with three bytes of data takes little space, in each sparse
// format of GNU tar.
func TestApplySparse(t *testing.T) {
	const size = 2 << 30
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1<<30 + 4096, size - 1} {
		if _, err := f.WriteAt([]byte("x"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	many, err := os.Create(filepath.Join(src, "many")) // more fragments than one header holds
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(200) {
		if _, err := many.WriteAt([]byte("fragment"), i<<16); err != nil {
			t.Fatal(err)
		}
	}
	if err := many.Close(); err != nil {
		t.Fatal(err)
	}
	hole, err := os.Create(filepath.Join(src, "hole")) // no data at all
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(hole.Truncate(1<<20), hole.Close()); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newStore(t)
			data := run(t, src, "tar", append(args, "--sparse", "-cf", "-", "disk", "many", "hole")...)
			if len(data) > 8<<20 {
				t.Fatalf("tar has %d bytes: not sparse", len(data))
			}
			l := register(t, s, "", data)
			st := stat(t, filepath.Join(diffOf(s, l), "disk"))
			if st.Size != size {
				t.Errorf("size %d, want %d", st.Size, size)
			}
			if st.Blocks*512 > 1<<20 {
				t.Errorf("file takes %d bytes on disk", st.Blocks*512)
			}
			for _, name := range []string{"many", "hole"} {
				run(t, "/", "cmp", filepath.Join(src, name), filepath.Join(diffOf(s, l), name))
			}
			g, err := os.Open(filepath.Join(diffOf(s, l), "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = g.Close() }()
			var b [3]byte
			if _, err := g.ReadAt(b[:], 1<<30+4095); err != nil || b != [3]byte{0, 'x', 0} {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
}

// TestApplyZeros: zeros in a tar do not fill the disk either.
func TestApplyZeros(t *testing.T) {
	s := newStore(t)
	const size = 64 << 20
	l := register(t, s, "", buildTar(t, file("zeros", strings.Repeat("\x00", size)), file("after", strings.Repeat("\x00", size)+"end")))
	for name, want := range map[string]int64{"zeros": size, "after": size + 3} {
		st := stat(t, filepath.Join(diffOf(s, l), name))
		if st.Size != want || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: size %d, on disk %d", name, st.Size, st.Blocks*512)
		}
	}
}

// victim is a directory next to a store. No layer may touch it.
func victim(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "passwd"), []byte("root"), 0o644); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func untouched(tb testing.TB, dir string) {
	tb.Helper()
	if d := cmp.Diff(map[string]string{"passwd": "file root"}, tree(tb, dir)); d != "" {
		tb.Errorf("files outside the layer changed (-want +got):\n%s", d)
	}
	if st := stat(tb, filepath.Join(dir, "passwd")); st.Mode&0o7777 != 0o644 || st.Nlink != 1 {
		tb.Errorf("passwd has mode %o and %d links", st.Mode&0o7777, st.Nlink)
	}
}

// TestApplyContained: these attacks end inside the layer. The tar is accepted, with names resolved
// as if the layer were the root directory.
func TestApplyContained(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries func(out string) []entry
		want    func(out string) map[string]string
	}{
		{
			"AbsolutePath",
			func(out string) []entry { return []entry{file(out+"/passwd", "evil")} },
			func(out string) map[string]string { return under(out, "passwd", "file evil") },
		},
		{
			"AbsoluteSymlinkAsParent",
			func(out string) []entry { return []entry{symlink("s", out), file("s/passwd", "evil")} },
			func(out string) map[string]string { return under(out, "passwd", "file evil", "s", "-> "+out) },
		},
		{
			"DotDotSymlinkAsParent",
			func(string) []entry {
				return []entry{symlink("s", "../../../../../../../.."), file("s/passwd", "evil")}
			},
			func(string) map[string]string {
				return map[string]string{"s": "-> ../../../../../../../..", "passwd": "file evil"}
			},
		},
		{
			"ChainOfSymlinksAsParent",
			func(out string) []entry {
				return []entry{dir("a"), symlink("a/b", ".."), symlink("a/c", "b/.."), symlink("d", "a/c"), file("d/passwd", "evil")}
			},
			func(string) map[string]string {
				return map[string]string{"a": "dir", "a/b": "-> ..", "a/c": "-> b/..", "d": "-> a/c", "passwd": "file evil"}
			},
		},
		{
			"SymlinkThenFileOfTheSameName",
			func(out string) []entry { return []entry{symlink("s", out+"/passwd"), file("s", "evil")} },
			func(string) map[string]string { return map[string]string{"s": "file evil"} },
		},
		{
			"SymlinkThenDirectoryOfTheSameName",
			func(out string) []entry {
				return []entry{symlink("s", out), dir("s").with(func(h *tar.Header) { h.Mode = 0o777 }), file("s/passwd", "evil")}
			},
			func(string) map[string]string { return map[string]string{"s": "dir", "s/passwd": "file evil"} },
		},
		{
			"HardLinkToSymlinkThenFile",
			func(out string) []entry {
				return []entry{symlink("s", out+"/passwd"), hardlink("h", "s"), file("h", "evil")}
			},
			func(out string) map[string]string {
				return map[string]string{"s": "-> " + out + "/passwd", "h": "file evil"}
			},
		},
		{
			"WhiteoutThroughSymlink",
			func(out string) []entry { return []entry{symlink("s", out), file("s/.wh.passwd", "")} },
			func(out string) map[string]string { return under(out, "passwd", "whiteout", "s", "-> "+out) },
		},
		{
			"OpaqueThroughSymlink",
			func(out string) []entry { return []entry{symlink("s", out), file("s/.wh..wh..opq", "")} },
			func(out string) map[string]string {
				want := under(out, "x", "")
				delete(want, strings.TrimPrefix(out, "/")+"/x")
				want[strings.TrimPrefix(out, "/")] = "opaque"
				want["s"] = "-> " + out
				return want
			},
		},
		{
			"DeviceThroughSymlink",
			func(out string) []entry { return []entry{symlink("s", out), device("s/disk", tar.TypeBlock, 8, 0)} },
			func(out string) map[string]string { return under(out, "disk", "block 8:0", "s", "-> "+out) },
		},
		{
			"MagicLinkAsParent",
			func(string) []entry {
				return []entry{symlink("s", "/proc/self/root/etc"), file("s/passwd", "evil")}
			},
			func(string) map[string]string {
				return map[string]string{
					"s": "-> /proc/self/root/etc", "proc": "dir", "proc/self": "dir", "proc/self/root": "dir",
					"proc/self/root/etc": "dir", "proc/self/root/etc/passwd": "file evil",
				}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := victim(t)
			s := newStore(t)
			l := register(t, s, "", buildTar(t, tc.entries(out)...))
			if d := cmp.Diff(tc.want(out), tree(t, diffOf(s, l))); d != "" {
				t.Errorf("tree differs (-want +got):\n%s", d)
			}
			untouched(t, out)
		})
	}
}

// under returns a tree with the directory out and name below it.
func under(out, name, what string, more ...string) map[string]string {
	want := map[string]string{}
	p := strings.TrimPrefix(out, "/")
	want[p+"/"+name] = what
	for ; p != "."; p = filepath.Dir(p) {
		want[p] = "dir"
	}
	for i := 0; i < len(more); i += 2 {
		want[more[i]] = more[i+1]
	}
	return want
}

// edit changes the header of the first entry and corrects its checksum.
func edit(data []byte, f func(block []byte)) []byte {
	data = bytes.Clone(data)
	f(data[:512])
	copy(data[148:156], "        ")
	sum := 0
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func plain(e entry) entry {
	return e.with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, time.Unix(1, 0) })
}

func many(n int, f func(i int) entry) []entry {
	all := make([]entry, n)
	for i := range all {
		all[i] = f(i)
	}
	return all
}

// TestApplyRefused: these attacks are refused. The error names the reason and the entry, and no
// file stays.
func TestApplyRefused(t *testing.T) {
	good := buildTar(t, plain(file("first", strings.Repeat("x", 5000))), plain(file("second", "y")))
	for _, tc := range []struct {
		name string
		tar  []byte
		says string
	}{
		{"DotDot", buildTar(t, file("../x", "evil")), `entry "../x"`},
		{"DotDotInTheMiddle", buildTar(t, file("a/../../x", "evil")), "leaves the root"},
		{"DotDotAlone", buildTar(t, dir("..")), "leaves the root"},
		{"HardLinkOutside", buildTar(t, hardlink("h", "../../../../etc/passwd")), "leaves the root"},
		{"HardLinkToAbsolutePath", buildTar(t, hardlink("h", "/etc/passwd")), `link to "/etc/passwd"`},
		{"HardLinkThroughSymlinkOutside", buildTar(t, symlink("s", "/etc"), hardlink("h", "s/passwd")), `entry "h"`},
		{"HardLinkToNothing", buildTar(t, hardlink("h", "nothing")), "not in this layer"},
		{"HardLinkToDirectory", buildTar(t, dir("d"), hardlink("h", "d")), "is a directory"},
		{"HardLinkToItself", buildTar(t, file("h", "x"), hardlink("h", "h")), "to itself"},
		{"HardLinkToWhiteout", buildTar(t, file(".wh.x", ""), hardlink("h", "x")), "not in this layer"},
		{"WhiteoutOfParent", buildTar(t, file("d/.wh...", "")), "whiteout of"},
		{"WhiteoutOfSelf", buildTar(t, file("d/.wh..", "")), "whiteout of"},
		{"WhiteoutOfNothing", buildTar(t, file("d/.wh.", "")), "whiteout of"},
		{"WhiteoutOutside", buildTar(t, file("../.wh.etc", "")), "leaves the root"},
		{"WhiteoutAsDirectory", buildTar(t, file(".wh.x/y", "")), "not a directory"},
		{"FileAsParent", buildTar(t, file("f", "x"), file("f/y", "z")), "not a directory"},
		{"RootAsFile", buildTar(t, file(".", "x")), "root of the layer"},
		{"RootAsSymlink", buildTar(t, symlink("./", "/etc")), "root of the layer"},
		{"SymlinkLoop", buildTar(t, symlink("a", "b"), symlink("b", "a"), file("a/x", "y")), "too many symbolic links"},
		{"SymlinkToNothing", edit(buildTar(t, plain(symlink("a", "b"))), func(b []byte) { b[157] = 0 }), "symbolic link"},
		{"NameTooLong", buildTar(t, file(strings.Repeat("a/", 2100)+"f", "x")), "limit"},
		{"ComponentTooLong", buildTar(t, file(strings.Repeat("a", 256), "x")), "limit"},
		{"ImpliedComponentTooLong", buildTar(t, file(strings.Repeat("a", 256)+"/b", "x")), "limit"},
		{"DeviceNumber", buildTar(t, device("d", tar.TypeChar, 1<<20, 1)), "out of range"},
		{"DeviceBomb", buildTar(t, many(maxDevices+1, func(i int) entry { return device(fmt.Sprint("d", i), tar.TypeChar, 1, 3) })...), "device nodes"},
		{"Owner", buildTar(t, file("f", "x").with(func(h *tar.Header) { h.Uid = math.MaxUint32 })), "out of range"},
		{"NegativeOwner", buildTar(t, file("f", "x").with(func(h *tar.Header) { h.Uid, h.Format = -1, tar.FormatGNU; h.ModTime = time.Unix(1, 0) })), "out of range"},
		{"AttributeTooLong", buildTar(t, file("f", "x").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", maxAttribute+1)}
		})), "attributes"},
		{"AttributeBomb", buildTar(t, file("f", "x").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{}
			for i := range maxAttributes + 1 {
				h.PAXRecords[fmt.Sprint("SCHILY.xattr.user.", i)] = "x"
			}
		})), "attributes"},
		{"RecordBomb", recordBomb(t), "headers of one entry"},
		{"UnknownType", edit(good, func(b []byte) { b[156] = 'Z' }), "unknown type"},
		{"NegativeSize", edit(good, func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00") }), "read header"},
		{"BadChecksum", append([]byte("x"), good[1:]...), "malformed"},
		{"Garbage", bytes.Repeat([]byte("garbage!"), 1000), "malformed"},
		{"TruncatedHeader", good[:300], "truncated"},
		{"TruncatedContent", good[:512+1000], "truncated"},
		{"TruncatedSecondHeader", good[:512+5120+100], "truncated"},
		{"TruncatedBigFile", buildTar(t, file("big", strings.Repeat("x", 1<<20)))[:1<<19], "truncated"},
		{"JunkInsteadOfSecondZeroBlock", append(good[:len(good)-512:len(good)-512], bytes.Repeat([]byte("j"), 512)...), "malformed"},
		{"HugeSparseFile", sparseBomb(t), "sparse"},
		{"SparseMapWithoutData", oldSparse(t, "00000000000\x0000000001000\x00", "00000010000\x00"), "does not match its data"},
		{"SparseMapBeyondTheEnd", oldSparse(t, "00000000000\x0000000001000\x00", "00000000100\x00"), "malformed"},
		{"NameBomb", nameBomb(t), "bytes of names"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := memoryStore(t)
			_, err := s.Register(context.Background(), "", "", bytes.NewReader(tc.tar))
			if err == nil {
				t.Fatal("accepted")
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "apply layer: ") || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %q (want InvalidArgument with %q)", err, tc.says)
			}
			noDrafts(t, s)
		})
	}
}

// recordBomb is a long sequence of extended headers without an entry.
func recordBomb(tb testing.TB) []byte {
	tb.Helper()
	one := buildTar(tb, file("f", "x").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"A.b": strings.Repeat("x", 1<<19)} }))
	header := one[:bytes.LastIndex(one, []byte("ustar"))-257]
	return bytes.Repeat(header, maxRecord/len(header)+2)
}

func sparseBomb(tb testing.TB) []byte {
	tb.Helper()
	return oldSparse(tb, "00000000000\x0000000000000\x00", "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
}

// oldSparse is a sparse file of the old GNU format with one fragment and no data.
func oldSparse(tb testing.TB, fragment, size string) []byte {
	tb.Helper()
	return edit(buildTar(tb, plain(file("f", ""))), func(b []byte) {
		b[156] = tar.TypeGNUSparse
		copy(b[386:410], fragment)
		copy(b[483:495], size)
	})
}

// TestApplySparseHuge: the length of a sparse file takes no time either.
func TestApplySparseHuge(t *testing.T) {
	s := newStore(t)
	start := time.Now()
	l := register(t, s, "", oldSparse(t, "00000000000\x0000000000000\x00", "\x80\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00"))
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	if st := stat(t, filepath.Join(diffOf(s, l), "f")); st.Size != 1<<39 || st.Blocks > 16 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
}

func nameBomb(tb testing.TB) []byte {
	tb.Helper()
	deep := strings.Repeat(strings.Repeat("n", 250)+"/", 16)
	return buildTar(tb, many(maxNames/len(deep)+1, func(int) entry { return file(deep+".wh.x", "") })...)
}

func TestApplyTrailerBomb(t *testing.T) {
	s := newStore(t)
	data := buildTar(t, file("a", "x"))
	_, err := s.Register(context.Background(), "", "", io.MultiReader(bytes.NewReader(data), io.LimitReader(zeros{}, maxTrailer+1)))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "trailer") {
		t.Errorf("error %v", err)
	}
	noDrafts(t, s)
	register(t, s, "", append(data, make([]byte, 1<<20)...)) // a blocking factor
	register(t, s, "", append(data, "no multiple of a block"...))
	register(t, s, "", buildTar(t, plain(file("a", "x")))[:513]) // the padding of the last file is missing
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestApplyEmpty: archives without entries are accepted.
func TestApplyEmpty(t *testing.T) {
	s := newStore(t)
	register(t, s, "", nil)
	register(t, s, "", make([]byte, 512))
	register(t, s, "", make([]byte, 1024))
	register(t, s, "", make([]byte, 10240))
}

func TestApplyInputError(t *testing.T) {
	s := newStore(t)
	data := buildTar(t, file("a", strings.Repeat("x", 1<<20)))
	broken := errors.New("connection reset")
	_, err := s.Apply(context.Background(), io.MultiReader(bytes.NewReader(data[:1<<19]), errorReader{broken}))
	if !errors.Is(err, broken) || errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v, want %v", err, broken)
	}
	noDrafts(t, s)
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

func TestApplyCancel(t *testing.T) {
	for _, tc := range []struct {
		name string
		rest func(context.Context) io.Reader
	}{
		{"endless content", func(context.Context) io.Reader { return zeros{} }},
		{"stalled input", func(ctx context.Context) io.Reader { return stalled{ctx} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			ctx, cancel := context.WithCancel(context.Background())
			big := edit(buildTar(t, plain(file("big", "")))[:512], func(b []byte) { copy(b[124:136], "77777777777\x00") })
			time.AfterFunc(50*time.Millisecond, cancel)
			start := time.Now()
			_, err := s.Apply(ctx, io.MultiReader(bytes.NewReader(big), tc.rest(ctx)))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
			noDrafts(t, s)
		})
	}
}

type stalled struct{ ctx context.Context }

func (r stalled) Read([]byte) (int, error) { <-r.ctx.Done(); return 0, r.ctx.Err() }

// TestApplyDiskFull: a full disk in the middle of a layer is an error. Afterwards the space is free
// again.
func TestApplyDiskFull(t *testing.T) {
	s := loopStore(t, 32<<20, "mkfs.ext4", "-q", "-F")
	small := buildTar(t, file("small", "fits"))
	for _, tc := range []struct {
		name string
		tar  []byte
	}{
		{"content", buildTar(t, file("fits", "x"), file("big", strings.Repeat("x", 64<<20)))},
		{"inodes", buildTar(t, many(20000, func(i int) entry { return file(fmt.Sprint("f", i), "") })...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := s.Register(context.Background(), "", "", bytes.NewReader(tc.tar))
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "entry ") {
				t.Errorf("error %v", err)
			}
			noDrafts(t, s)
		})
	}
	register(t, s, "", small)
}

// TestApplyRealTars: TarStream returns tars of real programs and formats bit for bit.
func TestApplyRealTars(t *testing.T) {
	for _, args := range [][]string{
		{"--format=gnu"}, {"--format=pax"}, {"--format=ustar"}, {"--format=v7"}, {"--format=oldgnu", "--blocking-factor=64"}, {"--format=pax", "--xattrs"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := memoryStore(t)
			dirs := []string{"/etc", "/usr/share/zoneinfo", "/usr/share/perl"}
			data := run(t, "/", "tar", append(args, append([]string{"--ignore-failed-read", "--warning=none", "-cf", "-"}, dirs...)...)...)
			l := register(t, s, "", data)
			for _, d := range dirs {
				run(t, "/", "diff", "-r", "--no-dereference", d, filepath.Join(diffOf(s, l), d))
			}
		})
	}
}

func TestDiffID(t *testing.T) {
	s := newStore(t)
	data := buildTar(t, file("a", "x"))
	d, err := s.Apply(context.Background(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if d.DiffID != digest.FromBytes(data) || d.Size != 1 {
		t.Errorf("draft %v of %d bytes", d.DiffID, d.Size)
	}
	if err := errors.Join(d.Discard(), d.Discard()); err != nil {
		t.Errorf("Discard: %v", err)
	}
	noDrafts(t, s)
	if _, err := s.Register(context.Background(), "", digest.FromString("other"), bytes.NewReader(data)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Register with another diff ID: %v", err)
	}
	noDrafts(t, s)
}
