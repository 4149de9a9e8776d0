package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	stream "github.com/micarun/mica/internal/decompress"
	"github.com/micarun/mica/internal/jsonlimit"
)

// Limits of an archive.
const (
	maxEntries  = 1 << 20
	maxFiles    = 1 << 15 // unpacked files; CRIU writes about ten for a process
	maxName     = 255
	maxMetadata = 8 << 20  // bytes of a file that is read as a whole
	maxNesting  = 64       // nesting depth of such a file
	maxValues   = 1 << 18  // values in such a file; a specification with a seccomp profile has a few thousand
	maxWindow   = 32 << 20 // zstd window in bytes; levels up to 19 use 8 MiB
)

// A compressed archive may expand to freeExpansion bytes plus maxExpansion bytes for each
// compressed byte. Unwritten memory compresses well, but CRIU does not save it.
const (
	freeExpansion = 1 << 30
	maxExpansion  = 100
)

// Archive is an open checkpoint. Its methods may be called repeatedly, but not concurrently.
type Archive struct {
	name  string
	begin func(context.Context) (io.ReadCloser, error) // returns a reader at the archive's start
	close func() error
}

// Open opens an archive file. It returns ErrNotFound if the file does not exist and
// ErrInvalidArgument if it is not a regular file.
func Open(name string) (*Archive, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open checkpoint archive %s: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open checkpoint archive: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("not a file: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open checkpoint archive %s: %w", name, err)
	}
	begin := func(context.Context) (io.ReadCloser, error) {
		_, err := f.Seek(0, io.SeekStart)
		return io.NopCloser(f), err
	}
	return &Archive{name: name, begin: begin, close: f.Close}, nil
}

// OpenStream returns an archive for a tar that can be read more than once, such as an image layer
// that contains a checkpoint. begin opens the tar at its start. name is used in errors, and Close
// calls closed.
func OpenStream(name string, begin func(context.Context) (io.ReadCloser, error), closed func()) *Archive {
	return &Archive{name: name, begin: begin, close: func() error { closed(); return nil }}
}

// Name returns the name under which the archive was opened.
func (a *Archive) Name() string { return a.name }

// Close closes the archive.
func (a *Archive) Close() error { return a.close() }

// Description is an archive's description of the container.
type Description struct {
	Config Config
	Spec   specs.Spec
}

// Describe reads the archive's description of the container. It returns ErrInvalidArgument if the
// description is missing or invalid.
func (a *Archive) Describe(ctx context.Context) (Description, error) {
	var d Description
	wanted := map[string]any{ConfigFile: &d.Config, SpecFile: &d.Spec}
	err := a.each(ctx, func(e entry) error {
		into := wanted[e.name]
		if into == nil {
			return nil
		}
		delete(wanted, e.name)
		if err := e.decode(into); err != nil {
			return err
		}
		if len(wanted) == 0 {
			return errEnough
		}
		return nil
	})
	if err == nil && len(wanted) > 0 {
		for name := range wanted {
			err = invalid("%s is missing", name)
		}
	}
	if err == nil && (d.Spec.Process == nil || d.Spec.Linux == nil) {
		err = invalid("%s has no process", SpecFile)
	}
	if err != nil {
		return Description{}, fmt.Errorf("read checkpoint archive %s: %w", a.name, err)
	}
	return d, nil
}

// Unpack writes the files that a restore needs into a directory, under their names and with mode
// 0600. It writes at most limit bytes. It returns ErrInvalidArgument for a name outside of the
// archive, a duplicate file, an entry that is not a regular file, and content above the limit.
// After an error, some files may have been written.
func (a *Archive) Unpack(ctx context.Context, dir string, limit int64) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack checkpoint archive %s: %w", a.name, err)
	}
	defer func() { _ = root.Close() }()
	images, files := false, 0
	err = a.each(ctx, func(e entry) error {
		if !wanted(e.name) {
			return nil
		}
		if files++; files > maxFiles {
			return invalid("it has more than %d files", maxFiles)
		}
		if limit -= e.size; limit < 0 {
			return invalid("its content is larger than the limit")
		}
		images = images || path.Dir(e.name) == ImagesDir
		if e.name == crioLogFile {
			e.name = LogFile
		}
		return e.unpack(root)
	})
	if err == nil && !images {
		err = invalid("it has no CRIU images")
	}
	if err != nil {
		return fmt.Errorf("unpack checkpoint archive %s: %w", a.name, err)
	}
	return nil
}

// wanted reports whether a restore needs the file.
func wanted(name string) bool {
	switch name {
	case RootfsDiffFile, DeletedFile, ShmFile, LogFile, crioLogFile:
		return true
	case ImagesDir, VolumesDir: // as a file, which unpack refuses
		return true
	}
	switch path.Dir(name) {
	case ImagesDir:
		return true
	case VolumesDir:
		return regexp.MustCompile(`^[0-9]{1,4}\.tar$`).MatchString(path.Base(name))
	}
	return false
}

// entry is one file of an archive.
type entry struct {
	name    string // clean and relative
	size    int64
	file    bool // a regular file
	content io.Reader
}

func (e entry) decode(into any) error {
	if !e.file || e.size > maxMetadata {
		return invalid("%s is not a file, or larger than %d bytes", e.name, maxMetadata)
	}
	data, err := io.ReadAll(io.LimitReader(e.content, maxMetadata))
	if err != nil {
		return fmt.Errorf("read %s: %w", e.name, err)
	}
	// The archive may come from an untrusted image layer.
	if err := jsonlimit.Check(data, jsonlimit.Limits{Depth: maxNesting, Values: maxValues}); err != nil {
		return invalid("decode %s: %v", e.name, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return invalid("decode %s: %v", e.name, err)
	}
	return nil
}

func (e entry) unpack(root *os.Root) error {
	if e.name == ImagesDir || e.name == VolumesDir {
		return invalid("%s is not a directory", e.name)
	}
	if !e.file {
		return invalid("%s is not a file", e.name)
	}
	if dir := path.Dir(e.name); dir != "." {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	f, err := root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return invalid("%s is duplicated", e.name)
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(f, e.content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && n != e.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", e.name, err)
	}
	return nil
}

// errEnough stops an iteration early.
var errEnough = errors.New("enough")

// each calls f for every entry of the archive that is not a directory.
func (a *Archive) each(ctx context.Context, f func(entry) error) error {
	err := a.eachEntry(ctx, f)
	if errors.Is(err, errEnough) {
		return nil
	}
	if cause := ctx.Err(); err != nil && cause != nil {
		return cause
	}
	return err
}

func (a *Archive) eachEntry(ctx context.Context, f func(entry) error) error {
	stream, err := a.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	counted, err := expand(reader{ctx, stream})
	if err != nil {
		return err
	}
	defer func() { _ = counted.Close() }()
	in := tar.NewReader(counted)
	end := int64(0) // of the previous entry
	for range maxEntries {
		h, err := in.Next()
		if errors.Is(err, io.EOF) && counted.n < end+tarBlock {
			err = io.ErrUnexpectedEOF // truncated between two entries
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return tarError(err)
		}
		end = counted.n
		if sparse(h) {
			if err := counted.grow(h.Size); err != nil {
				return err
			}
		} else if h.Typeflag == tar.TypeReg {
			end += (h.Size + tarBlock - 1) / tarBlock * tarBlock
		}
		name, err := entryName(h.Name)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := f(entry{name: name, size: h.Size, file: h.Typeflag == tar.TypeReg, content: in}); err != nil {
			return tarError(err)
		}
	}
	return invalid("it has more than %d entries", maxEntries)
}

// tarBlock is the size of a tar header, and the minimum size of a tar's end marker.
const tarBlock = 512

// expansion is the decompressed content of an archive. It counts bytes for two reasons: archive/tar
// does not notice if an archive is truncated between two entries, and an archive must not expand
// without limit.
type expansion struct {
	plain      io.ReadCloser
	compressed *counter
	n          int64
	holes      int64 // bytes of holes in sparse files, not part of the archive
}

// counter counts the bytes read and keeps the error that ended reading.
type counter struct {
	from io.Reader
	n    int64
	err  error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func expand(in io.Reader) (*expansion, error) {
	compressed := &counter{from: in}
	plain, err := decompress(compressed)
	return &expansion{plain: plain, compressed: compressed}, err
}

func (e *expansion) Read(p []byte) (int, error) {
	n, err := e.plain.Read(p)
	e.n += int64(n)
	if err := e.grow(0); err != nil {
		return n, err
	}
	// If reading the compressed data succeeded, the error is caused by the archive's content.
	if err != nil && !errors.Is(err, io.EOF) && e.compressed.err == nil {
		err = fmt.Errorf("the archive is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return n, err
}

// grow adds holes and returns ErrInvalidArgument if the archive expands too much.
func (e *expansion) grow(holes int64) error {
	const most = 1 << 60 // far above the limit; the sum of two does not overflow
	e.holes = min(e.holes, most) + min(holes, most)
	if e.n+e.holes > freeExpansion+maxExpansion*e.compressed.n {
		return invalid("it expands to more than %d bytes plus %d times its own size", freeExpansion, maxExpansion)
	}
	return nil
}

func (e *expansion) Close() error { return e.plain.Close() }

// sparse reports whether an entry's size differs from the size of its data in the tar.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// entryName returns the clean name of an entry. Names outside of the archive are
// ErrInvalidArgument.
func entryName(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || strings.IndexByte(name, 0) >= 0 || path.IsAbs(name):
		return "", invalid("entry %q: bad name", name)
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", invalid("entry %q leaves the archive", name)
	case len(path.Base(clean)) > maxName:
		return "", invalid("entry %.32q…: name of %d bytes", name, len(name))
	}
	return clean, nil
}

// tarError adds ErrInvalidArgument to errors caused by the archive's content.
func tarError(err error) error {
	if errdefs.IsInvalidArgument(err) {
		return err
	}
	for _, is := range []error{io.ErrUnexpectedEOF, tar.ErrHeader, tar.ErrFieldTooLong, gzip.ErrHeader, gzip.ErrChecksum, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded} {
		if errors.Is(err, is) {
			return fmt.Errorf("the archive is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

// OpenTar opens a tar from an archive that was unpacked into dir, and decompresses it if necessary.
// A missing file reads as an empty tar.
func OpenTar(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, err
	}
	plain, err := expand(reader{ctx, f})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), f.Close())
	}
	return &stacked{ReadCloser: plain, below: f}, nil
}

// stacked also closes the file below the reader.
type stacked struct {
	io.ReadCloser
	below io.Closer
}

func (s *stacked) Close() error { return errors.Join(s.ReadCloser.Close(), s.below.Close()) }

// decompress returns the content of an archive, which may be compressed with gzip or zstd.
func decompress(in io.Reader) (io.ReadCloser, error) {
	out, err := stream.NewReader(in, maxWindow)
	if err != nil {
		return nil, tarError(err)
	}
	return out, nil
}

// ReadDeleted reads the list of deleted files from an archive that was unpacked into dir. It
// returns nil if there is none.
func ReadDeleted(dir string) ([]string, error) {
	var deleted []string
	err := readJSON(dir, DeletedFile, &deleted)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return deleted, err
}

// Stream describes a standard stream of a checkpointed process.
type Stream string

// Pipe reports whether the stream was a pipe to outside the container.
func (s Stream) Pipe() bool { return strings.HasPrefix(string(s), "pipe:") }

// ReadStreams reads the descriptions of stdin, stdout and stderr from an archive that was unpacked
// into dir. It returns ErrInvalidArgument if they are missing or incomplete.
func ReadStreams(dir string) ([3]Stream, error) {
	var streams []Stream
	var three [3]Stream
	err := readJSON(filepath.Join(dir, ImagesDir), descriptorsFile, &streams)
	if errors.Is(err, fs.ErrNotExist) {
		return three, invalid("%s/%s is missing", ImagesDir, descriptorsFile)
	}
	if err == nil && len(streams) < len(three) {
		err = invalid("%s/%s describes only %d streams", ImagesDir, descriptorsFile, len(streams))
	}
	copy(three[:], streams)
	return three, err
}

func readJSON(dir, name string, into any) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return entry{name: name, size: st.Size(), file: st.Mode().IsRegular(), content: f}.decode(into)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
