package decompress

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// The same tar, with a file etc/content that holds "xz", by `xz -6`, by `xz` with a dictionary of
// 128 MiB, and by bzip2.
const (
	xzLayer      = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AGBdADKdCIYUP4Cj768UjzWjcp0pHdiVxVJPunR4siz8FIYOTl7KcsvDYQyh16RUNQ6/+AHPvin/JIZS+xq7O/Gvs+5PKH42r9IGTaQ4Z5U81vTn6QPU8SstCmujL3doKb7wAADjuZrz51lMhAABfIBQAAAAV6ZexbHEZ/sCAAAAAARZWg=="
	xzLargeLayer = "/Td6WFoAAATm1rRGAgAhAR4AAACbB1Fm4Cf/AGBdADKdCIYUP4Cj768UjzWjcp0pHdiVxVJPunR4siz8FIYOTl7KcsvDYQyh16RUNQ6/+AHPvin/JIZS+xq7O/Gvs+5PKH42r9IGTaQ4Z5U81vTn6QPU8SstCmujL3doKb7wAADjuZrz51lMhAABfIBQAAAAV6ZexbHEZ/sCAAAAAARZWg=="
	bzip2Layer   = "QlpoOTFBWSZTWaJVJNEAAG9bgMmAQAD3AAIAagGeUAgIIABUMoENMTExNqYJJEGTTIBiH1YDkIPcAQibVpApKOSBDAx1N4nsI4cRQME+6scaCqn3+jhMpwtNakSQNi7kinChIUSqSaI="
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func fromBase64(s string) []byte { return must(base64.StdEncoding.DecodeString(s)) }

func gzipped(data []byte, header func(*gzip.Header)) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if header != nil {
		header(&w.Header)
	}
	must(w.Write(data))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func zstdFrame(data []byte, o ...zstd.EOption) []byte {
	var b bytes.Buffer
	w := must(zstd.NewWriter(&b, o...))
	must(w.Write(data))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// wideFrame returns a frame of one raw block that asks for a window of 2^log bytes.
func wideFrame(log byte, data []byte) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3}
	block := uint32(len(data))<<3 | 1
	return append(append(b, byte(block), byte(block>>8), byte(block>>16)), data...)
}

// skippableFrame returns a skippable frame. pzstd writes one before each frame, with a hint of its
// size.
func skippableFrame(id uint32, size int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x184d2a50+id)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	return append(b, make([]byte, size)...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func (p *Pool) readAll(ctx context.Context, blob []byte) ([]byte, error) {
	t, err := p.Open(ctx, bytes.NewReader(blob), int64(len(blob)))
	if err != nil {
		return nil, err
	}
	defer t.Close()
	data, err := io.ReadAll(t)
	if err == nil && t.Received() != int64(len(blob)) {
		err = io.ErrShortBuffer
	}
	return data, err
}

// Every form of a blob that common tools write is decompressed.
func TestDecompress(t *testing.T) {
	want := []byte(strings.Repeat("content of a tar ", 4000))
	half := len(want) / 2
	for name, blob := range map[string][]byte{
		"plain":                    want,
		"gzip":                     gzipped(want, nil),
		"gzip with name and extra": gzipped(want, func(h *gzip.Header) { h.Name, h.Comment, h.Extra = "layer.tar", "c", make([]byte, 60_000) }),
		"gzip of two members":      join(gzipped(want[:half], nil), gzipped(nil, nil), gzipped(want[half:], nil)),
		"zstd":                     zstdFrame(want),
		"zstd of two frames":       join(zstdFrame(want[:half]), zstdFrame(want[half:])),
		"pzstd":                    join(skippableFrame(0, 4), zstdFrame(want[:half]), skippableFrame(0, 4), zstdFrame(want[half:])),
		"zstd behind much":         join(skippableFrame(15, 200_000), skippableFrame(3, 0), zstdFrame(want)),
		"zstd with an index":       join(zstdFrame(want), skippableFrame(14, 300)),
		"zstd with a wide window":  zstdFrame(want, zstd.WithWindowSize(64<<20)),
	} {
		got, err := NewPool().readAll(t.Context(), blob)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes and %v, want %d", name, len(got), err, len(want))
		}
	}
	for name, blob := range map[string][]byte{
		"nothing": nil, "empty gzip": gzipped(nil, nil), "empty zstd": zstdFrame(nil, zstd.WithZeroFrames(true)), "skippable frames only": skippableFrame(1, 10),
	} {
		if got, err := NewPool().readAll(t.Context(), blob); err != nil || len(got) != 0 {
			t.Errorf("%s: %d bytes and %v, want none", name, len(got), err)
		}
	}
	for name, blob := range map[string][]byte{
		"xz": fromBase64(xzLayer), "two xz streams": join(fromBase64(xzLayer), make([]byte, 8), fromBase64(xzLayer)), "bzip2": fromBase64(bzip2Layer),
	} {
		got, err := NewPool().readAll(t.Context(), blob)
		if err != nil || !bytes.HasPrefix(got, []byte("etc/content\x00")) || len(got)%10_240 != 0 {
			t.Errorf("%s: %d bytes and %v", name, len(got), err)
		}
	}
}

// A damaged stream, or one that needs too much memory, is refused with an error that names the
// format.
func TestDecompressRefuses(t *testing.T) {
	data := bytes.Repeat([]byte("content"), 1000)
	frame := zstdFrame(data)
	for name, c := range map[string]struct {
		blob []byte
		want string
	}{
		"gzip and garbage":         {append(gzipped(data, nil), "garbage"...), "decompress gzip"},
		"zstd and garbage":         {append(zstdFrame(data), "garbage"...), "decompress zstd"},
		"xz and garbage":           {append(fromBase64(xzLayer), "garbage"...), "decompress xz"},
		"cut gzip":                 {gzipped(data, nil)[:40], "decompress gzip"},
		"cut gzip magic":           {gzipped(data, nil)[:2], "gzip: unexpected EOF"},
		"cut zstd":                 {frame[:len(frame)-6], "decompress zstd"},
		"gzip with a long name":    {gzipped(data, func(h *gzip.Header) { h.Name = strings.Repeat("n", 1<<20) }), "gzip: invalid header"},
		"cut xz":                   {fromBase64(xzLayer)[:100], "decompress xz"},
		"cut skippable frame":      {skippableFrame(0, 100)[:50], "zstd: unexpected EOF"},
		"cut skippable head":       {skippableFrame(0, 100)[:6], "zstd: unexpected EOF"},
		"zstd window":              {wideFrame(28, data), "zstd: window of 268435456 bytes, the limit is"},
		"zstd window behind":       {join(skippableFrame(0, 4), wideFrame(28, data)), "zstd: window of"},
		"zstd window, second":      {join(zstdFrame(data), wideFrame(26, data)), "decompress zstd"},
		"zstd segment of 1 TB":     {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0}, "zstd: window of 1099511627776 bytes"},
		"xz dictionary of 128 MiB": {fromBase64(xzLargeLayer), "dictionary size exceeds max"},
	} {
		if _, err := NewPool().readAll(t.Context(), c.blob); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		} else if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v is not an invalid argument", name, err)
		}
	}
}

// Streams that need much memory wait for each other, also after one that needs more than the common
// limit. Streams that need little do not wait.
func TestDictionariesAreBounded(t *testing.T) {
	for _, log := range []byte{26, 27} {
		p := NewPool()
		first, err := p.Open(t.Context(), bytes.NewReader(wideFrame(log, []byte("x"))), 100<<20)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := p.readAll(ctx, fromBase64(xzLayer)); err == nil || !strings.Contains(err.Error(), "wait for memory") {
			t.Errorf("a second large dictionary: %v", err)
		}
		if _, err := p.readAll(t.Context(), zstdFrame([]byte("small"))); err != nil {
			t.Error(err)
		}
		first.Close()
		if _, err := p.readAll(t.Context(), fromBase64(xzLayer)); err != nil {
			t.Error(err)
		}
	}
}

// The memory for a window depends on the size of the blob, not only on its header.
func TestWindowsGrowWithTheirBlobs(t *testing.T) {
	for size, most := range map[int64]uint64{
		0: 8 << 20, 100: 8 << 20, 64 << 10: 8 << 20, 256 << 10: 32 << 20, 1 << 20: 48 << 20, 10 << 20: 48 << 20, 11 << 20: 128 << 20, math.MaxInt64: 128 << 20,
	} {
		if got := mostWindow(size); got != most {
			t.Errorf("a blob of %d bytes: %d, want %d", size, got, most)
		}
	}
}

// A later frame with a window for which no memory is reserved is refused as an invalid stream.
func TestWindowOfALaterFrame(t *testing.T) {
	blob := join(zstdFrame([]byte("content")), wideFrame(26, []byte("content")))
	if _, err := NewPool().readAll(t.Context(), blob); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "window size exceeded") {
		t.Errorf("got %v", err)
	}
}

// copies returns the same content twice, with zeros in between.
func copies(apart int) []byte {
	content := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	return join(content, make([]byte, apart-len(content)), content)
}

// A stream with a larger window than its blob may use works if its content does not need that
// window.
func TestNarrowedWindows(t *testing.T) {
	near, far := copies(7<<20), copies(20<<20)
	for name, frame := range map[string]func([]byte) []byte{
		"unknown size":   func(data []byte) []byte { return wideZstd(data, false) },
		"single segment": func(data []byte) []byte { return wideZstd(data, true) },
	} {
		got, err := NewPool().readAll(t.Context(), frame(near))
		if err != nil || !bytes.Equal(got, near) {
			t.Errorf("%s: %d bytes and %v, want %d", name, len(got), err, len(near))
		}
		_, err = NewPool().readAll(t.Context(), frame(far))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "the window is limited to 8") {
			t.Errorf("%s: a match beyond the limit: %v", name, err)
		}
		p, blob := NewPool(), frame(far)
		tar, err := p.Open(t.Context(), bytes.NewReader(blob), 100<<20)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(tar); err != nil || !bytes.Equal(got, far) {
			t.Errorf("%s: in a large blob: %d bytes and %v, want %d", name, len(got), err, len(far))
		}
		tar.Close()
	}
}

// wideZstd compresses data with a window of 128 MiB, or with one as large as data.
func wideZstd(data []byte, single bool) []byte {
	o := []zstd.EOption{zstd.WithWindowSize(maxWindow), zstd.WithEncoderLevel(zstd.SpeedDefault)}
	if single {
		return must(zstd.NewWriter(nil, append(o, zstd.WithSingleSegment(true))...)).EncodeAll(data, nil)
	}
	return zstdFrame(data, o...)
}

// NewReader knows gzip and zstd, passes on anything else, and bounds the window of every frame.
func TestNewReader(t *testing.T) {
	want := bytes.Repeat([]byte("content"), 1000)
	for name, c := range map[string]struct{ blob, want []byte }{
		"plain": {want, want}, "gzip": {gzipped(want, nil), want}, "zstd": {zstdFrame(want), want},
		"pzstd": {join(skippableFrame(0, 4), zstdFrame(want)), want}, "nothing": {nil, nil}, "short": {[]byte("x"), []byte("x")},
		"xz": {fromBase64(xzLayer), fromBase64(xzLayer)},
	} {
		r, err := NewReader(bytes.NewReader(c.blob), 32<<20)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes and %v, want %d", name, len(got), err, len(c.want))
		}
	}
	for name, blob := range map[string][]byte{"first": wideFrame(26, want), "second": join(zstdFrame(want), wideFrame(26, want))} {
		r, err := NewReader(bytes.NewReader(blob), 32<<20)
		if err == nil {
			_, err = io.ReadAll(r)
			err = errors.Join(err, r.Close())
		}
		if !errors.Is(err, zstd.ErrWindowSizeExceeded) {
			t.Errorf("a wide %s frame: %v", name, err)
		}
	}
}
