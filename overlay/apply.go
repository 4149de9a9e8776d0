package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/failpoint"
)

// Apply extracts one uncompressed layer tar, in one pass that also computes its diff ID and
// tar-split metadata. It converts AUFS whiteouts to overlayfs whiteouts. Nothing is visible until
// the draft is committed. Any number of Apply calls may run concurrently.
//
// Names are relative to the root of the layer. Symbolic links of the layer are resolved as if the
// layer were the root directory, so nothing outside is ever touched. A later entry replaces an
// earlier one of the same name; two directories are merged. Apply creates parent directories that
// the tar does not list, and Commit copies their metadata from the layers below. Apply drops
// extended attributes named trusted.overlay.* and AUFS's own files.
//
// Apply returns errdefs.ErrInvalidArgument if the tar is malformed, leaves the root, or exceeds a
// limit, and errdefs.ErrUnavailable after Close. Errors of the input and of the disk keep their
// class. Every error names the stage and the entry; the draft is removed. When ctx ends, Apply
// returns as soon as the current Read of the input does: bind the input to the same context.
func (s *Store) Apply(ctx context.Context, in io.Reader) (*Draft, error) {
	return s.ApplyWithin(ctx, s.NewAllowance(), in)
}

// ApplyWithin is [Store.Apply] for a layer that shares the allowance of its image.
func (s *Store) ApplyWithin(ctx context.Context, image *Allowance, in io.Reader) (*Draft, error) {
	if err := s.checkOpen(); err != nil {
		return nil, fmt.Errorf("apply layer: %w", err)
	}
	tar, ok := in.(Decompressed)
	if !ok {
		counted := &countedInput{Reader: in}
		in, tar = counted, counted
	}
	d := &Draft{CacheID: newID(), store: s, budget: image.newBudget(tar)}
	s.setBusy(d.CacheID, true)
	if err := s.apply(ctx, d, in); err != nil {
		return nil, errors.Join(fmt.Errorf("apply layer: %w", err), d.Discard())
	}
	d.budget.complete(d.implied.kept())
	return d, nil
}

func (s *Store) apply(ctx context.Context, d *Draft, in io.Reader) error {
	if err := d.budget.begin(); err != nil {
		return err
	}
	if err := s.makeDraft(d.CacheID); err != nil {
		return fmt.Errorf("make draft: %w", err)
	}
	root, err := unix.Open(s.paths.diff(d.CacheID), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open draft: %w", err)
	}
	x := newExtractor(root, s.paths.dir(d.CacheID), d.budget)
	defer x.close()
	split := filepath.Join(s.paths.writeSet(d.CacheID), tarSplitName)
	if d.DiffID, err = s.pipeline(ctx, x, in, split); err != nil {
		return err
	}
	if err := failpoint.Hit("overlay.apply.extracted"); err != nil {
		return err
	}
	return x.finish(ctx, d, split)
}

func (s *Store) makeDraft(id string) error {
	if err := os.Mkdir(s.paths.dir(id), 0o710); err != nil {
		return err
	}
	if err := makeDir(s.paths.diff(id), 0o755); err != nil {
		return err
	}
	return os.Mkdir(s.paths.writeSet(id), 0o700)
}

// makeDir is os.Mkdir without the umask.
func makeDir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// pipeline runs the goroutines of one layer: read ahead, hash, parse (here), write files, write
// tar-split. The first error ends them all.
func (s *Store) pipeline(ctx context.Context, x *extractor, in io.Reader, split string) (digest.Digest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	src := newSource(ctx, func() *[]byte { return s.buffers.Get().(*[]byte) })
	var input sync.WaitGroup
	defer src.recycle(&s.buffers, &input)
	var err error
	if x.pack, err = startPacker(ctx, cancel, split, &s.splits); err != nil {
		return "", err
	}
	x.writers = startWriters(ctx, cancel, &s.buffers)
	x.record.source = src
	x.tar = tar.NewReader(x.record)
	input.Go(func() { src.pump(in) })
	input.Go(src.sum)

	if err := x.run(); err != nil {
		cancel(err)
	}
	x.writers.close()
	x.pack.close()
	x.dirs.close()
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	input.Wait()
	return digest.NewDigest(digest.SHA256, src.hasher), nil
}

// recycle waits for the goroutines of the source and returns its buffers to the pool.
func (s *source) recycle(pool *sync.Pool, goroutines *sync.WaitGroup) {
	goroutines.Wait()
	for {
		select {
		case b := <-s.free:
			pool.Put(b.buf)
		default:
			return // after an error, the garbage collector frees buffers that are elsewhere
		}
	}
}

// run reads the tar to its end.
func (x *extractor) run() error {
	for {
		h, err := x.tar.Next()
		if errors.Is(err, io.EOF) {
			return x.trailer()
		}
		if err != nil {
			return fmt.Errorf("read header after entry %q: %w", x.last, tarError(err))
		}
		x.last = h.Name
		if err := x.entry(h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, tarError(err))
		}
	}
}

// tarError adds errdefs.ErrInvalidArgument to errors that the tar itself causes.
func tarError(err error) error {
	var in *inputError
	switch {
	case errors.As(err, &in):
		return fmt.Errorf("read input: %w", in.err)
	case errors.Is(err, errdefs.ErrInvalidArgument):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("tar is truncated: %w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), strings.HasPrefix(err.Error(), "archive/tar: "):
		return fmt.Errorf("tar is malformed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// trailer records the bytes after the end of the archive in tar-split.
func (x *extractor) trailer() error {
	x.pack.segment(x.record.take())
	buf := x.writers.buffer()
	defer x.writers.recycle(chunk{buf: buf})
	for total := 0; ; {
		x.record.off = true
		n, err := x.record.Read(*buf)
		if err := x.keepRaw(bytes.Clone((*buf)[:n])); err != nil {
			return fmt.Errorf("read trailer: %w", err)
		}
		if total += n; total > maxTrailer {
			return invalid("read trailer: more than %d bytes after the end of the archive", maxTrailer)
		}
		if err := x.countInput(); err != nil {
			return fmt.Errorf("read trailer: %w", err)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read trailer: %w", tarError(err))
		}
	}
}

// finish completes the directory and fills in the draft.
func (x *extractor) finish(ctx context.Context, d *Draft, split string) error {
	if x.names.twice || len(x.moved) > 0 {
		if err := repack(ctx, repackArgs{path: split, shadow: x.shadow, moved: x.moved, names: &x.names, budget: x.budget, splits: x.pack.splits}); err != nil {
			return fmt.Errorf("write tar-split: %w", err)
		}
	}
	if err := x.dropShadow(ctx); err != nil {
		return fmt.Errorf("remove replaced files: %w", err)
	}
	d.Size = x.size
	if len(x.moved) > 0 {
		var err error
		if d.Size, err = layerSize(ctx, filepath.Join(x.dir, diffName)); err != nil {
			return fmt.Errorf("measure layer: %w", err)
		}
	}
	d.implied, _ = impliedBelow(x.tree)
	dirs, err := newLadder(x.root)
	if err != nil {
		return err
	}
	defer dirs.close()
	return setTimes(ctx, dirs, x.tree)
}

// setTimes sets the times of the current directory of dirs and of all directories below it, as
// their entries give them.
func setTimes(ctx context.Context, dirs *ladder, n *node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.times != nil {
		if err := futimens(dirs.fd(), n.times.access, n.times.modify); err != nil {
			return fmt.Errorf("entry %q: %w", n.name(), err)
		}
	}
	for _, c := range n.children {
		if c.kind != kindDir {
			continue
		}
		if err := dirs.down(c.base); err != nil {
			return fmt.Errorf("open directory %q: %w", c.name(), err)
		}
		if err := setTimes(ctx, dirs, c); err != nil {
			return err
		}
		if err := dirs.up(); err != nil {
			return fmt.Errorf("leave directory %q: %w", c.name(), err)
		}
	}
	return nil
}

// layerSize counts a layer as dockerd does: the lengths of all files that are not directories, hard
// links once.
func layerSize(ctx context.Context, dir string) (int64, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var size int64
	seen := map[uint64]bool{}
	err = walkTree(ctx, fd, walk{names: func(dirfd int, names []string) (dirs []string, err error) {
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, &os.PathError{Op: "stat", Path: name, Err: err}
			}
			switch {
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				dirs = append(dirs, name)
				continue
			case seen[st.Ino]:
				continue
			case st.Nlink > 1:
				seen[st.Ino] = true
			}
			size += st.Size
		}
		return dirs, nil
	}})
	return size, err
}
