package imageservice

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/micarun/mica/overlay"
)

const (
	// maxZstdWindow bounds the memory of a zstd stream in bytes; it is what `zstd --long=27` and `zstd --ultra -22` need.
	maxZstdWindow = 128 << 20
	// plainZstdWindow is what RFC 8878 asks of every decoder. Builders of images use no more.
	plainZstdWindow = 8 << 20
	// maxXZDictionary is what `xz -9` needs.
	maxXZDictionary = 64 << 20
	// maxDictionaries bounds the memory of all streams together that need more than plainZstdWindow. The others wait.
	maxDictionaries = maxZstdWindow
)

// Nanoseconds of processor time that a decompressed byte takes beyond what it takes with gzip or zstd. Streams that are made to be slow
// take 20 to 30 at the ratios where the store's budget decides: bzip2 with much to sort and little to read, xz without a match.
const (
	bzip2ByteCost = 30
	xzByteCost    = 30
)

// layerTar is the uncompressed tar of a layer.
type layerTar struct {
	io.Reader
	blob     *receivedReader
	byteCost int64
	closers  []func()
}

var _ overlay.Decompressed = (*layerTar)(nil)

// Received implements [overlay.Decompressed].
func (t *layerTar) Received() int64 { return t.blob.count.Load() }

// ByteCost implements [overlay.Decompressed].
func (t *layerTar) ByteCost() int64 { return t.byteCost }

func (t *layerTar) Close() {
	for _, c := range t.closers {
		c()
	}
}

// receivedReader counts what was read of a blob.
type receivedReader struct {
	io.Reader
	count atomic.Int64
}

func (r *receivedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.count.Add(int64(n))
	return n, err
}

// decompress returns the layer tar in a blob. The format is found by its first bytes, not by the media type, as dockerd and containerd do,
// because media types in the wild are wrong. It may wait until other layers need less memory. The caller closes the tar.
func (s *Service) decompress(ctx context.Context, blob io.Reader) (*layerTar, error) {
	t := &layerTar{blob: &receivedReader{Reader: blob}}
	in := bufio.NewReaderSize(t.blob, 64<<10)
	if err := s.open(ctx, t, in); err != nil {
		t.Close()
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return t, nil
}

func (s *Service) open(ctx context.Context, t *layerTar, in *bufio.Reader) error {
	// An error shows itself again when the rest is read.
	magic, _ := in.Peek(6)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 0x08}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("gzip: %w", err)
		}
		t.Reader = named{z, "gzip"}
	case isZstd(magic):
		return s.openZstd(ctx, t, in)
	case bytes.HasPrefix(magic, []byte("BZh")):
		t.Reader, t.byteCost = named{bzip2.NewReader(in), "bzip2"}, bzip2ByteCost
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return s.openXZ(ctx, t, in)
	default:
		t.Reader = in
	}
	return nil
}

// reserve waits for memory of a stream's dictionary.
func (s *Service) reserve(ctx context.Context, t *layerTar, size int64) error {
	if err := s.dictionaries.Acquire(ctx, size); err != nil {
		return fmt.Errorf("wait for memory: %w", err)
	}
	t.closers = append(t.closers, func() { s.dictionaries.Release(size) })
	return nil
}

func (s *Service) openXZ(ctx context.Context, t *layerTar, in io.Reader) error {
	if err := s.reserve(ctx, t, maxXZDictionary); err != nil {
		return err
	}
	z, err := xz.NewReader(in, maxXZDictionary)
	if err != nil {
		return fmt.Errorf("xz: %w", err)
	}
	t.Reader, t.byteCost = named{z, "xz"}, xzByteCost
	return nil
}

func isZstd(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || isSkippable(magic)
}

// isSkippable tells whether a zstd frame is one that decoders skip (RFC 8878, section 3.1.2). Parallel compressors begin with one.
func isSkippable(magic []byte) bool {
	return len(magic) >= 4 && binary.LittleEndian.Uint32(magic)&^0xf == 0x184d2a50
}

func (s *Service) openZstd(ctx context.Context, t *layerTar, in *bufio.Reader) error {
	window, err := zstdWindow(in)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if window > maxZstdWindow {
		return fmt.Errorf("zstd: window of %d bytes, the limit is %d: %w", window, maxZstdWindow, errdefs.ErrInvalidArgument)
	}
	if window > plainZstdWindow {
		if err := s.reserve(ctx, t, int64(window)); err != nil {
			return err
		}
	}
	// A later frame with a larger window is refused: no memory is reserved for it.
	window = max(window, plainZstdWindow)
	z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	t.closers = append([]func(){z.Close}, t.closers...)
	t.Reader = named{z, "zstd"}
	return nil
}

// zstdWindow discards skippable frames and returns how much memory the first frame needs, which it does not consume; 0 if there is none.
func zstdWindow(in *bufio.Reader) (uint64, error) {
	for {
		head, err := in.Peek(8)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return 0, nil
		}
		if !isSkippable(head) {
			break
		}
		if err != nil {
			return 0, truncated(err)
		}
		size := 8 + int64(binary.LittleEndian.Uint32(head[4:]))
		if _, err := io.CopyN(io.Discard, in, size); err != nil {
			return 0, truncated(err)
		}
	}
	head, err := in.Peek(zstd.HeaderMaxSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return 0, err
	}
	if h.SingleSegment {
		return h.FrameContentSize, nil
	}
	return h.WindowSize, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// named says in errors what was being decompressed.
type named struct {
	io.Reader
	format string
}

func (n named) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("decompress %s: %w", n.format, err)
	}
	return k, err
}
