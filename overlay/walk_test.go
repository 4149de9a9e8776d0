package overlay

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// nest creates depth nested directories and a file in the last one.
func nest(tb testing.TB, top string, depth int) {
	tb.Helper()
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o755)
		}
		if err != nil {
			tb.Fatal(err)
		}
		var next int
		next, err = unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		fd = next
	}
	if err != nil {
		tb.Fatal(err)
	}
	file, err := createFile(fd, "f", 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	_, _ = unix.Close(file), unix.Close(fd)
}

// fewDescriptors limits the process to a few more open files than it has.
func fewDescriptors(tb testing.TB) {
	tb.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		tb.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)) + 64, Max: old.Max}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// TestNestedDirectories: a layer with directories nested deeper than PATH_MAX or the descriptor
// limit is measured and removed like any other.
func TestNestedDirectories(t *testing.T) {
	const depth = 20_000
	ctx := context.Background()
	s := memoryStore(t)
	rw, err := s.Create(ctx, CreateArgs{ID: "deep"})
	if err != nil {
		t.Fatal(err)
	}
	nest(t, s.paths.diff(rw.MountID), depth)
	fewDescriptors(t)
	u, err := s.Usage(ctx, "deep")
	if err != nil || u.Inodes != depth+2 {
		t.Errorf("Usage: %d inodes and %v, want %d", u.Inodes, err, depth+2)
	}
	if _, err := s.Changes(ctx, "deep", io.Discard); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "limit") {
		t.Errorf("Changes: %v, want the limit of a path", err)
	}
	if err := s.Remove(ctx, "deep"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := os.Lstat(s.paths.dir(rw.MountID)); !os.IsNotExist(err) {
		t.Errorf("the layer still exists: %v", err)
	}
}

// TestChangesOfNestedDirectories: paths up to the tar's limit are packed, with few descriptors.
func TestChangesOfNestedDirectories(t *testing.T) {
	const depth = 2_000
	dir := memoryDir(t)
	nest(t, dir, depth)
	fewDescriptors(t)
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(PackTree(context.Background(), dir, w)) }()
	entries, in := 0, tar.NewReader(r)
	for {
		if _, err := in.Next(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		entries++
	}
	if entries != depth+1 {
		t.Errorf("%d entries, want %d", entries, depth+1)
	}
}

// TestFailedRemovalIsRetried: a later SweepUnused removes what a failed removal left.
func TestFailedRemovalIsRetried(t *testing.T) {
	ctx := context.Background()
	s := memoryStore(t)
	rw, err := s.Create(ctx, CreateArgs{ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(s.paths.diff(rw.MountID), "m")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inside, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "c"); err == nil {
		t.Error("Remove has no error although something is mounted in the layer")
	}
	if err := unix.Unmount(inside, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SweepUnused(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.paths.dir(rw.MountID)); !os.IsNotExist(err) {
		t.Errorf("the directory still exists: %v", err)
	}
}

// TestUsageOfManyNames: a directory that does not fit into one read is counted once.
func TestUsageOfManyNames(t *testing.T) {
	ctx := context.Background()
	for name, s := range map[string]*Store{"memory": memoryStore(t), "disk": newStore(t)} {
		rw, err := s.Create(ctx, CreateArgs{ID: "wide"})
		if err != nil {
			t.Fatal(err)
		}
		const dirs = 3_000
		for i := range dirs {
			d := filepath.Join(s.paths.diff(rw.MountID), strconv.Itoa(i))
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(d, "f"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := s.Usage(ctx, "wide")
		if err != nil || u.Inodes != 2*dirs+1 {
			t.Errorf("%s: %d inodes and %v, want %d", name, u.Inodes, err, 2*dirs+1)
		}
		if err := s.Remove(ctx, "wide"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
