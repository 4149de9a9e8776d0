package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashVariable) != "" {
		os.Exit(crashChild())
	}
	if os.Geteuid() == 0 && os.Getenv(apartVariable) == "" {
		os.Exit(runApart())
	}
	goleak.VerifyTestMain(m)
}

const apartVariable = "MICA_TEST_APART"

// runApart runs the tests in a separate mount namespace. Tests of other packages run CRIU
// meanwhile, and CRIU cannot parse the mountinfo line of a mount of 100 layers.
func runApart() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the child dies with the thread that started it
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		return 1
	}
	return 0
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: owners, device nodes, trusted attributes and mounts")
	}
}

// newStore opens a store in a new directory. When the test ends, Check must find nothing, and
// nothing may be mounted.
func newStore(tb testing.TB) *Store {
	tb.Helper()
	return openStore(tb, tb.TempDir())
}

// memoryStore is newStore on a file system in memory, for tests that write much and do not depend
// on a disk.
func memoryStore(tb testing.TB) *Store {
	tb.Helper()
	return openStore(tb, memoryDir(tb))
}

func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mica-overlay-") //nolint:usetesting // a file system in memory
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

//nolint:contextcheck // its cleanup runs after the end of the test's context
func openStore(tb testing.TB, root string) *Store {
	tb.Helper()
	needRoot(tb)
	s, err := Open(context.Background(), Options{Root: root})
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	sweep(tb, s)
	tb.Cleanup(func() {
		if !isClosed(s) {
			checkClean(tb, s)
		}
		for _, rw := range s.RWs() {
			if err := s.Unmount(context.Background(), rw.ID); err != nil {
				tb.Errorf("Unmount: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			tb.Errorf("Close: %v", err)
		}
	})
	return s
}

func sweep(tb testing.TB, s *Store) {
	tb.Helper()
	if err := s.SweepAbandoned(context.Background()); err != nil {
		tb.Errorf("SweepAbandoned: %v", err)
	}
}

func isClosed(s *Store) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func checkClean(tb testing.TB, s *Store) {
	tb.Helper()
	problems, err := s.Check(context.Background(), CheckOptions{Content: true})
	if err != nil {
		tb.Errorf("Check: %v", err)
	}
	for _, p := range problems {
		tb.Errorf("Check: %s: %s", p.Path, p.What)
	}
}

// entry is one entry of a tar under construction.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: stamp, Size: int64(len(body))}, body}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: stamp}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: stamp}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: stamp}}
}

func device(name string, typ byte, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: stamp}}
}

var stamp = time.Unix(1500000000, 123456789)

func (e entry) with(f func(*tar.Header)) entry {
	f(&e.Header)
	return e
}

func buildTar(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	data, err := encodeTar(entries)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func encodeTar(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.Format == tar.FormatUnknown {
			e.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("write header of %q: %w", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			return nil, fmt.Errorf("write %q: %w", e.Name, err)
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// register applies and commits one layer and checks that TarStream returns the same bytes.
func register(tb testing.TB, s *Store, parent digest.Digest, data []byte) Layer {
	tb.Helper()
	l, err := s.Register(context.Background(), parent, digest.FromBytes(data), bytes.NewReader(data))
	if err != nil {
		tb.Fatalf("Register: %v", err)
	}
	if got := readLayer(tb, s, l.ID); !bytes.Equal(got, data) {
		tb.Errorf("TarStream returns %d bytes that differ from the %d bytes of the input", len(got), len(data))
	}
	return l
}

func readLayer(tb testing.TB, s *Store, chain digest.Digest) []byte {
	tb.Helper()
	r, err := s.TarStream(context.Background(), chain)
	if err != nil {
		tb.Fatalf("TarStream: %v", err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		tb.Errorf("TarStream: %v", err)
	}
	if err := r.Close(); err != nil {
		tb.Errorf("TarStream: close: %v", err)
	}
	return got
}

// tree describes a directory tree for comparisons, one line for each name: type, mode, owner, and
// content, target or device number. It marks whiteouts and opaque directories.
func tree(tb testing.TB, root string) map[string]string {
	tb.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		got[rel] = describe(tb, path)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func describe(tb testing.TB, path string) string {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		tb.Fatal(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if v := xattr(tb, path, opaqueAttr); v == "y" {
			return "opaque"
		}
		return "dir"
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			tb.Fatal(err)
		}
		return "-> " + target
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		return "file " + string(b)
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return "whiteout"
		}
		return fmt.Sprintf("char %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		return fmt.Sprintf("block %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return "?"
}

func xattr(tb testing.TB, path, name string) string {
	tb.Helper()
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func stat(tb testing.TB, path string) unix.Stat_t {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		tb.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func diffOf(s *Store, l Layer) string { return s.paths.diff(l.CacheID) }

// noDrafts reports an error if anything but the committed layers is on disk.
func noDrafts(tb testing.TB, s *Store) {
	tb.Helper()
	names, err := readNames(s.paths.overlay())
	if err != nil {
		tb.Fatal(err)
	}
	want := len(s.Layers()) + 1
	for _, rw := range s.RWs() {
		if want++; rw.InitID != "" {
			want++
		}
	}
	if len(names) != want {
		slices.Sort(names)
		tb.Errorf("overlay2 holds %d names, expected %d: %s", len(names), want, strings.Join(names, " "))
	}
	left, err := readNames(s.paths.tmp())
	if err != nil {
		tb.Fatal(err)
	}
	if len(left) > 0 {
		tb.Errorf("layerdb/tmp holds %v", left)
	}
}

// loopStore opens a store on a new file system of size bytes.
func loopStore(tb testing.TB, size int64, mkfs ...string) *Store {
	tb.Helper()
	needRoot(tb)
	base := memoryDir(tb)
	image, root := filepath.Join(base, "image"), filepath.Join(base, "root")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		tb.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, cmd := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, root}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			tb.Skipf("needs a loop mount: %v: %v: %s", cmd, err, out)
		}
	}
	tb.Cleanup(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			tb.Errorf("umount: %v: %s", err, out)
		}
	})
	return openStore(tb, root)
}
