package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxXZDictionary is the dictionary size of `xz -9` in bytes.
const maxXZDictionary = 64 << 20

// Nanoseconds of processor time that a decompressed byte takes in excess of gzip or zstd. Streams
// that are made to be slow take 20 to 30 at the ratios at which an allowance decides: bzip2 with
// much to sort and little to read, xz without a match.
const (
	bzip2ByteCost = 30
	xzByteCost    = 30
)

// format is the format of a stream.
type format int

const (
	plain format = iota
	gzipFormat
	zstdFormat
	bzip2Format
	xzFormat
)

// magicSize is the number of bytes that determine a format.
const magicSize = 6

// formatOf returns the format of a stream that begins with magic.
func formatOf(magic []byte) format {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) && (len(magic) == 2 || magic[2] == 8):
		return gzipFormat
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		return zstdFormat
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2Format
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xzFormat
	}
	return plain
}

// isSkippable reports whether a zstd frame is skippable (RFC 8878, section 3.1.2). Parallel
// compressors begin with such a frame.
func isSkippable(magic []byte) bool {
	return len(magic) >= 4 && binary.LittleEndian.Uint32(magic)&^0xf == 0x184d2a50
}

// Pool decompresses layers and bounds the memory of all its streams. Its methods may be called
// concurrently.
type Pool struct {
	memory   *memory
	decoders sync.Pool // of *zstd.Decoder, for windows of plainWindow
}

// NewPool returns a pool. It has nothing to close.
func NewPool() *Pool { return &Pool{memory: newMemory()} }

// Stream is the decompressed content of a blob. Read and Close may not be called concurrently; the
// other methods may be called at any time.
type Stream struct {
	content  io.Reader
	blob     *receivedReader
	size     int64 // of the blob
	byteCost int64
	close    func() // frees the decoder; nil if it has nothing to free
	release  func() // returns the memory of reserve; nil without
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) { return s.content.Read(p) }

// Received returns the number of bytes that were read from the blob.
func (s *Stream) Received() int64 { return s.blob.count.Load() }

// ByteCost returns the processor time in nanoseconds that a decompressed byte takes in excess of
// gzip or zstd.
func (s *Stream) ByteCost() int64 { return s.byteCost }

// Close frees the memory of the stream, which must not be read after it.
func (s *Stream) Close() {
	if s.close != nil {
		s.close()
	}
	s.content, s.close = nil, nil
	if s.release != nil {
		s.release()
	}
	s.release = nil
}

// receivedReader counts the bytes read from a blob.
type receivedReader struct {
	io.Reader
	count atomic.Int64
}

func (r *receivedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.count.Add(int64(n))
	return n, err
}

// Open returns the content of a blob of size bytes. If the stream needs much memory, Open waits
// until other streams of the pool have freed theirs. The caller closes the stream.
//
// Errors of Open and of the stream's Read name the format. Any error but those of ctx is
// errdefs.ErrInvalidArgument: the stream is damaged, or needs more memory than it may have. An
// error of blob gets that class too, so the caller must report the blob's error in its place.
func (p *Pool) Open(ctx context.Context, blob io.Reader, size int64) (*Stream, error) {
	s := &Stream{blob: &receivedReader{Reader: blob}, size: size}
	in := bufio.NewReaderSize(s.blob, int(min(64<<10, max(size, 4<<10))))
	if err := p.open(ctx, s, in); err != nil {
		s.Close()
		return nil, invalidStream(fmt.Errorf("decompress: %w", err))
	}
	return s, nil
}

func (p *Pool) open(ctx context.Context, s *Stream, in *bufio.Reader) error {
	// An error occurs again when the rest is read.
	magic, _ := in.Peek(magicSize)
	switch formatOf(magic) {
	case gzipFormat:
		z, err := newGzipReader(in)
		if err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		s.content = named{z, "gzip"}
	case zstdFormat:
		return p.openZstd(ctx, s, in)
	case bzip2Format:
		s.content, s.byteCost = named{bzip2.NewReader(in), "bzip2"}, bzip2ByteCost
	case xzFormat:
		return p.openXZ(ctx, s, in)
	default:
		s.content = in
	}
	return nil
}

// reserve waits for the memory of a stream's window.
func (p *Pool) reserve(ctx context.Context, s *Stream, size int64) (err error) {
	s.release, err = p.memory.acquire(ctx, size)
	return err
}

func (p *Pool) openXZ(ctx context.Context, s *Stream, in io.Reader) error {
	if err := p.reserve(ctx, s, maxXZDictionary); err != nil {
		return err
	}
	z, err := xz.NewReader(in, maxXZDictionary)
	if err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	s.content, s.byteCost = named{z, "xz"}, xzByteCost
	return nil
}

// NewReader returns the content of a gzip, zstd or uncompressed stream. A zstd stream may have a
// window of at most maxWindow bytes. The caller closes the reader. Errors are those of in and of
// the libraries, unchanged.
func NewReader(in io.Reader, maxWindow uint64) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(in, 1<<20)
	magic, err := buffered.Peek(magicSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch formatOf(magic) {
	case gzipFormat:
		z, err := newGzipReader(buffered)
		return io.NopCloser(z), err
	case zstdFormat:
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	default:
		return io.NopCloser(buffered), nil
	}
}

// named adds the format to errors.
type named struct {
	io.Reader
	format string
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = fmt.Errorf("a later frame: %w", err)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // a reader ends with io.EOF itself; a wrapped one is a failure
		err = invalidStream(fmt.Errorf("decompress %s: %w", n.format, err))
	}
	return k, err
}

// invalidStream adds errdefs.ErrInvalidArgument to an error of a decoder.
func invalidStream(err error) error {
	if errdefs.IsInvalidArgument(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}
