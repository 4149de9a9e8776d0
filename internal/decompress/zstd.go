package decompress

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxWindow bounds the window of a zstd stream in bytes. `zstd --long=27` and `zstd --ultra
	// -22` use as much.
	maxWindow = 128 << 20
	// plainWindow is the window that RFC 8878 requires of every decoder, in bytes. Builders of
	// images use no more.
	plainWindow = 8 << 20
)

// The header of a small blob can ask for a window that its content does not need: `zstd --ultra
// -22` asks for maxWindow if it does not know the size of its input. A stream of a small blob gets
// a smaller window. Only a match that goes further back is an error.
const (
	smallBlob       = 10 << 20 // maximum size in bytes of a blob whose window is at most smallBlobWindow
	smallBlobWindow = 48 << 20
	windowRatio     = 128 // bytes of window for each byte of a blob, if that is more than plainWindow
)

func (p *Pool) openZstd(ctx context.Context, s *Stream, in *bufio.Reader) error {
	head, err := zstdHeader(in)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	wanted := windowOf(head)
	if wanted > maxWindow {
		return fmt.Errorf("zstd: window of %d bytes, the limit is %d: %w", wanted, maxWindow, errdefs.ErrInvalidArgument)
	}
	blob, window := io.Reader(in), wanted
	if most := mostWindow(s.size); wanted > most {
		if blob, window, err = narrowFrame(in, head, most); err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
	}
	if window > plainWindow {
		err = p.openWideZstd(ctx, s, blob, window)
	} else {
		err = p.openPlainZstd(s, blob)
	}
	if err == nil && window < wanted {
		s.content = narrowed{Reader: s.content, window: window, size: s.size}
	}
	return err
}

// openWideZstd opens a stream with a large window. A later frame with a larger window is refused,
// because it has no memory reserved.
func (p *Pool) openWideZstd(ctx context.Context, s *Stream, blob io.Reader, window uint64) error {
	if err := p.reserve(ctx, s, int64(window)); err != nil {
		return err
	}
	z, err := newZstd(blob, window)
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	s.content, s.close = named{z, "zstd"}, z.Close
	return nil
}

// openPlainZstd opens a stream whose frames have windows of at most plainWindow. The decoder is
// used again for later streams: the windows of an image of many layers would become garbage faster
// than it is collected.
func (p *Pool) openPlainZstd(s *Stream, blob io.Reader) (err error) {
	z, ok := p.decoders.Get().(*zstd.Decoder)
	if ok {
		err = z.Reset(blob)
	} else {
		z, err = newZstd(blob, plainWindow)
	}
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	r := &endReader{Reader: z}
	s.content, s.close = named{r, "zstd"}, func() {
		if !r.ended || z.Reset(nil) != nil {
			z.Close() // its goroutines still read the blob
			return
		}
		p.decoders.Put(z)
	}
	return nil
}

func newZstd(blob io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(blob, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window), zstd.WithDecoderConcurrency(2))
}

// endReader records whether its stream has ended without an error.
type endReader struct {
	io.Reader
	ended bool
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.ended = err == io.EOF
	return n, err
}

// mostWindow returns the maximum window of a zstd blob of a size, both in bytes.
func mostWindow(size int64) uint64 {
	if size > smallBlob {
		return maxWindow
	}
	return uint64(max(plainWindow, min(smallBlobWindow, windowRatio*size)))
}

func windowOf(h zstd.Header) uint64 {
	if h.SingleSegment {
		return h.FrameContentSize
	}
	return h.WindowSize
}

// zstdHeader discards skippable frames and returns the header of the first other frame without
// consuming it. It returns an empty header if there is no other frame.
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

// narrowFrame changes the header of the frame at the start of in (RFC 8878, section 3.1.1.1), so
// that its window has at most most bytes. It returns the frame and its window.
func narrowFrame(in *bufio.Reader, h zstd.Header, most uint64) (io.Reader, uint64, error) {
	const descriptor, singleSegment = 4, 1 << 5 // offset of the descriptor byte, and a bit in it
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

// narrowed explains errors of a stream with a smaller window than its header asks for.
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
