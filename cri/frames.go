package cri

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/containerd/errdefs"
	"github.com/moby/spdystream/spdy"
)

// Limits of SPDY frames, in bytes. Clients send control frames of some hundred bytes.
const (
	// maxDataFrame is the size of the pieces that larger data frames are cut into.
	// github.com/moby/spdystream holds up to 250 frames of a connection.
	maxDataFrame = 16 << 10
	// maxControlFrame is the size of the compressed headers of a stream, for example.
	maxControlFrame = 16 << 10
	maxHeaderField  = 1 << 10
	maxHeaders      = 16
)

// The format of SPDY/3.1 frames.
const (
	frameHead     = 8
	controlBit    = 1 << 31
	lengthMask    = 1<<24 - 1
	kindSynStream = 1
)

// frameLimits are the framer's own limits.
func frameLimits() []spdy.FramerOption {
	return []spdy.FramerOption{
		spdy.WithMaxControlFramePayloadSize(maxControlFrame),
		spdy.WithMaxHeaderFieldSize(maxHeaderField),
		spdy.WithMaxHeaderCount(maxHeaders),
	}
}

// frameReader passes on a client's SPDY frames. It cuts large data frames into pieces, which mean the
// same to the receiver, because github.com/moby/spdystream holds frames as a whole. It ends the
// connection at frames for which that package would use unlimited memory: large control frames, and
// new streams whose IDs do not increase, which it answers on a goroutine each.
type frameReader struct {
	from io.Reader

	head    []byte // bytes to pass on before the payload
	payload int64  // bytes of the frame's or piece's payload to pass on
	rest    int64  // bytes of a data frame after this piece
	stream  uint32 // of that data frame
	flags   uint32 // of that data frame
	last    uint32 // the highest ID of a stream that the client has opened
	err     error  // why the connection ends
}

// Read implements io.Reader.
func (f *frameReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(f.head) == 0 && f.payload == 0 && f.err == nil {
		f.err = f.next()
	}
	switch {
	case f.err != nil:
		return 0, f.err
	case len(f.head) > 0:
		n := copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := f.from.Read(p[:min(int64(len(p)), f.payload)])
	f.payload -= int64(n)
	return n, err
}

// next begins the next piece or frame.
func (f *frameReader) next() error {
	if f.rest > 0 {
		f.piece(f.rest)
		return nil
	}
	head := make([]byte, frameHead)
	if _, err := io.ReadFull(f.from, head); err != nil {
		return err
	}
	word, length := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	if word&controlBit != 0 {
		return f.control(head, uint16(word), length&lengthMask)
	}
	f.stream, f.flags = word, length&^lengthMask
	f.piece(int64(length & lengthMask))
	return nil
}

// piece begins a data frame with as much of size as fits. The flags are those of the last piece.
func (f *frameReader) piece(size int64) {
	f.payload = min(size, maxDataFrame)
	f.rest = size - f.payload
	word := uint32(f.payload)
	if f.rest == 0 {
		word |= f.flags
	}
	f.head = binary.BigEndian.AppendUint32(f.head[:0], f.stream)
	f.head = binary.BigEndian.AppendUint32(f.head, word)
}

// control begins a control frame.
func (f *frameReader) control(head []byte, kind uint16, length uint32) error {
	if length > maxControlFrame {
		return fmt.Errorf("SPDY control frame has %d bytes, more than %d: %w", length, maxControlFrame, errdefs.ErrOutOfRange)
	}
	f.head, f.payload = head, int64(length)
	if kind != kindSynStream || length < 4 {
		return nil
	}
	id := make([]byte, 4)
	if _, err := io.ReadFull(f.from, id); err != nil {
		return err
	}
	stream := binary.BigEndian.Uint32(id) & math.MaxInt32
	if stream%2 == 0 || stream <= f.last {
		return fmt.Errorf("SPDY stream %d opened after %d: %w", stream, f.last, errdefs.ErrInvalidArgument)
	}
	f.last = stream
	f.head, f.payload = append(f.head, id...), f.payload-int64(len(id))
	return nil
}
