package imageservice

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory of a zstd stream in bytes; it is what `zstd --long=27` needs.
const maxZstdWindow = 128 << 20

// decompress returns the layer tar in a blob. The format is told by its first bytes, not by the media type, as dockerd does, because media types
// in the wild are wrong. The caller calls close when it has read enough.
func decompress(blob io.Reader) (tar io.Reader, close func(), err error) {
	r := bufio.NewReaderSize(blob, 64<<10)
	// An error shows itself again when the rest is read.
	magic, _ := r.Peek(6)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b, 0x08}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return named{z, "gzip"}, func() { _ = z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nil, fmt.Errorf("decompress: %w", err)
		}
		return named{z, "zstd"}, z.Close, nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return named{bzip2.NewReader(r), "bzip2"}, func() {}, nil
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, nil, fmt.Errorf("decompress: xz layers: %w", errdefs.ErrNotImplemented)
	}
	return r, func() {}, nil
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
