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
	"math/bits"
	"strings"
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
)

// The header of a small blob can ask for memory that its content does not need: `zstd --ultra -22` asks
// for maxZstdWindow whenever it does not know the size of its input. A stream of a small blob gets a
// smaller window than it asks for. Only a match that goes further back is an error.
const (
	smallBlob       = 10 << 20 // bytes of the largest blob whose window is at most smallBlobWindow
	smallBlobWindow = 48 << 20
	windowRatio     = 128 // bytes of window for each byte of a blob, beyond plainZstdWindow
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
	size     int64 // of the blob
	byteCost int64
	repeated bool   // what is received does not add to the image's allowance
	close    func() // frees the decoder; nil if it has nothing to free
	release  func() // gives back what reserve got; nil without
}

var _ overlay.Decompressed = (*layerTar)(nil)

// Received implements [overlay.Decompressed].
func (t *layerTar) Received() int64 {
	if t.repeated {
		return 0
	}
	return t.blob.count.Load()
}

// ByteCost implements [overlay.Decompressed].
func (t *layerTar) ByteCost() int64 { return t.byteCost }

// Close frees the memory of the stream, which must not be read any more.
func (t *layerTar) Close() {
	if t.close != nil {
		t.close()
	}
	t.Reader, t.close = nil, nil
	if t.release != nil {
		t.release()
	}
	t.release = nil
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
// because media types in the wild are wrong. It may wait until other layers need less memory. size is the blob's. The caller closes the tar.
func (s *Service) decompress(ctx context.Context, blob io.Reader, size int64) (*layerTar, error) {
	t := &layerTar{blob: &receivedReader{Reader: blob}, size: size}
	in := bufio.NewReaderSize(t.blob, 64<<10)
	if err := s.open(ctx, t, in); err != nil {
		t.Close()
		return nil, invalidStream(fmt.Errorf("decompress: %w", err))
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
func (s *Service) reserve(ctx context.Context, t *layerTar, size int64) (err error) {
	t.release, err = s.dictionaries.acquire(ctx, size)
	return err
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
	head, err := zstdHeader(in)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	wanted := windowOf(head)
	if wanted > maxZstdWindow {
		return fmt.Errorf("zstd: window of %d bytes, the limit is %d: %w", wanted, maxZstdWindow, errdefs.ErrInvalidArgument)
	}
	blob, window := io.Reader(in), wanted
	if most := mostWindow(t.size); wanted > most {
		if blob, window, err = narrowFrame(in, head, most); err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
	}
	if window > plainZstdWindow {
		err = s.openWideZstd(ctx, t, blob, window)
	} else {
		err = s.openPlainZstd(t, blob)
	}
	if err == nil && window < wanted {
		t.Reader = narrowed{Reader: t.Reader, window: window, size: t.size}
	}
	return err
}

// openWideZstd opens a stream with a large window. Frames with a larger one are refused: no memory is reserved for them.
func (s *Service) openWideZstd(ctx context.Context, t *layerTar, blob io.Reader, window uint64) error {
	if err := s.reserve(ctx, t, int64(window)); err != nil {
		return err
	}
	z, err := newZstd(blob, window)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	t.Reader, t.close = named{z, "zstd"}, z.Close
	return nil
}

// openPlainZstd opens a stream whose frames have windows of plainZstdWindow at most. Its decoder serves several streams,
// one after the other: the windows of an image of many layers would become garbage faster than it is collected.
func (s *Service) openPlainZstd(t *layerTar, blob io.Reader) (err error) {
	z, ok := s.decoders.Get().(*zstd.Decoder)
	if ok {
		err = z.Reset(blob)
	} else {
		z, err = newZstd(blob, plainZstdWindow)
	}
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	r := &endReader{Reader: z}
	t.Reader, t.close = named{r, "zstd"}, func() {
		if !r.ended || z.Reset(nil) != nil {
			z.Close() // its goroutines still read the blob
			return
		}
		s.decoders.Put(z)
	}
	return nil
}

func newZstd(blob io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(blob, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window), zstd.WithDecoderConcurrency(2))
}

// endReader knows whether its stream has ended without an error.
type endReader struct {
	io.Reader
	ended bool
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.ended = err == io.EOF
	return n, err
}

// mostWindow is the largest window of a zstd blob of some size.
func mostWindow(size int64) uint64 {
	if size > smallBlob {
		return maxZstdWindow
	}
	return uint64(max(plainZstdWindow, min(smallBlobWindow, windowRatio*size)))
}

func windowOf(h zstd.Header) uint64 {
	if h.SingleSegment {
		return h.FrameContentSize
	}
	return h.WindowSize
}

// zstdHeader discards skippable frames and returns the header of the first other frame, which it does not consume; an empty one if there is none.
func zstdHeader(in *bufio.Reader) (h zstd.Header, err error) {
	for {
		head, err := in.Peek(8)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return h, nil
		}
		if !isSkippable(head) {
			break
		}
		if err != nil {
			return h, truncated(err)
		}
		size := 8 + int64(binary.LittleEndian.Uint32(head[4:]))
		if _, err := io.CopyN(io.Discard, in, size); err != nil {
			return h, truncated(err)
		}
	}
	head, err := in.Peek(zstd.HeaderMaxSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	return h, h.Decode(head)
}

// narrowFrame changes the header of the frame that in begins with (RFC 8878, section 3.1.1.1), so that its window has at most most bytes.
// It returns the frame and its window.
func narrowFrame(in *bufio.Reader, h zstd.Header, most uint64) (io.Reader, uint64, error) {
	const descriptor, singleSegment = 4, 1 << 5 // place of the descriptor byte, and a bit of it
	old := descriptor + 2
	if h.SingleSegment {
		old-- // it has no byte for the window
	}
	head := make([]byte, descriptor+2)
	if _, err := io.ReadFull(in, head[:old]); err != nil {
		return nil, 0, truncated(err)
	}
	exponent := bits.Len64(most) - 1
	eighths := most>>(exponent-3) - 8
	head[descriptor] &^= singleSegment
	head[descriptor+1] = byte(exponent-10)<<3 | byte(eighths)
	return io.MultiReader(bytes.NewReader(head), in), (8 + eighths) << (exponent - 3), nil
}

// narrowed explains errors of a stream whose window is smaller than it asks for.
type narrowed struct {
	io.Reader
	window uint64
	size   int64
}

func (n narrowed) Read(p []byte) (int, error) {
	k, err := n.Reader.Read(p)
	if err != nil && strings.Contains(err.Error(), "match offset") {
		err = fmt.Errorf("the window is limited to %d bytes for a blob of %d bytes: %w: %w", n.window, n.size, err, errdefs.ErrInvalidArgument)
	}
	return k, err
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
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		err = fmt.Errorf("a later frame: %w", err)
	}
	if err != nil && err != io.EOF {
		err = invalidStream(fmt.Errorf("decompress %s: %w", n.format, err))
	}
	return k, err
}

// invalidStream marks an error of a decoder as the layer's fault. If the transfer failed, its error
// takes the place of this one: see extract.
func invalidStream(err error) error {
	if errdefs.IsInvalidArgument(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}
