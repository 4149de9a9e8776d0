package checkpoint

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/atomicfile"
	"github.com/micarun/mica/internal/failpoint"
)

// tempPrefix begins the name of an unfinished archive.
const tempPrefix = ".mica-checkpoint-"

// TempName returns the path of the temporary file in which Write makes the archive for a location.
// It depends only on location's directory and tag.
func TempName(location, tag string) string {
	return filepath.Join(filepath.Dir(location), tempPrefix+tag)
}

// CheckLocation returns ErrInvalidArgument unless an archive can be written to location: an
// absolute path in an existing directory, at which there is nothing or a regular file.
func CheckLocation(location string) error {
	if !filepath.IsAbs(location) || strings.ContainsRune(location, 0) || strings.HasSuffix(location, "/") {
		return fmt.Errorf("location %q is not an absolute path of a file: %w", location, errdefs.ErrInvalidArgument)
	}
	st, err := os.Stat(filepath.Dir(location))
	switch {
	case err != nil:
		return fmt.Errorf("location %q: its directory: %w: %w", location, err, errdefs.ErrInvalidArgument)
	case !st.IsDir():
		return fmt.Errorf("location %q: %s is not a directory: %w", location, filepath.Dir(location), errdefs.ErrInvalidArgument)
	}
	st, err = os.Lstat(location)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("location %q: %w: %w", location, err, errdefs.ErrInvalidArgument)
	case !st.Mode().IsRegular():
		return fmt.Errorf("location %q exists and is not a regular file: %w", location, errdefs.ErrInvalidArgument)
	}
	return nil
}

// WriteArgs name an archive and its source.
type WriteArgs struct {
	// From is the directory to pack (Write) or the file to copy (CopyFile).
	From string
	// Temp is the path of the temporary file. It is renamed to Location once the whole archive is
	// on stable storage. Both are in the same directory.
	Temp, Location string
}

// Write makes an archive with mode 0600. After an error, the temporary file is removed and Location
// is unchanged.
func Write(ctx context.Context, a WriteArgs) error {
	return appear(ctx, a, func(w io.Writer) error { return pack(ctx, a.From, w) })
}

// CopyFile is Write with the content of a single file.
func CopyFile(ctx context.Context, a WriteArgs) error {
	return appear(ctx, a, func(w io.Writer) error {
		f, err := os.Open(a.From)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		_, err = io.Copy(w, reader{ctx, f})
		return err
	})
}

func appear(ctx context.Context, a WriteArgs, fill func(io.Writer) error) error {
	if err := write(ctx, a, fill); err != nil {
		return errors.Join(fmt.Errorf("write archive %s: %w", a.Location, err), remove(a.Temp))
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func write(ctx context.Context, a WriteArgs, fill func(io.Writer) error) error {
	f, err := os.OpenFile(a.Temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(f, 1<<20)
	err = fill(buffered)
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = ctx.Err() // the caller has given up
	}
	if err == nil {
		err = failpoint.Hit("checkpoint-written")
	}
	if err != nil {
		return err
	}
	if err := os.Rename(a.Temp, a.Location); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(a.Location))
}

// pack writes the tar of a directory that does not change meanwhile.
func pack(ctx context.Context, dir string, to io.Writer) error {
	out := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return packEntry(ctx, out, path, name, entry)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func packEntry(ctx context.Context, out *tar.Writer, path, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Format: tar.FormatPAX, Name: name, ModTime: info.ModTime().Truncate(time.Second)}
	if entry.IsDir() {
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o700
		return out.WriteHeader(h)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o600, info.Size()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(out, reader{ctx, io.LimitReader(f, info.Size())})
	return err
}

// reader returns its context's error once the context has ended.
type reader struct {
	ctx  context.Context // of one call; the reader does not outlive it
	from io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.from.Read(p)
}
