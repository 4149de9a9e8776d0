package decompress

import (
	"bufio"
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"

	"github.com/micarun/mica/internal/testseed"
)

// library decompresses a blob with a library's reader.
func library[R io.Reader](open func(io.Reader) (R, error), blob []byte) ([]byte, error) {
	z, err := open(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// asLibraries decompresses a blob with gzipReader in reads of size bytes. It must have the content
// of Go's library and of the compress library, and accept what both accept: Go's accepts reserved
// flags, and the other one a second member whose header ends within its name.
func asLibraries(t *testing.T, blob []byte, size int) {
	t.Helper()
	want, wantErr := library(stdgzip.NewReader, blob)
	if wantErr == nil {
		_, wantErr = library(gzip.NewReader, blob)
	}
	var out bytes.Buffer
	z, err := newGzipReader(bufio.NewReaderSize(bytes.NewReader(blob), 4<<10))
	if err == nil {
		_, err = io.CopyBuffer(&out, struct{ io.Reader }{z}, make([]byte, size))
	}
	got := out.Bytes()
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%d bytes in reads of %d: got %v, the libraries have %v", len(blob), size, err, wantErr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%d bytes in reads of %d: got %d bytes, the libraries have %d, or others", len(blob), size, len(got), len(want))
	}
	if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("%d bytes in reads of %d: content before the error differs", len(blob), size)
	}
}

// text returns size bytes that compress like a mixture of programs and text.
func text(r *rand.Rand, size int) []byte {
	data := make([]byte, 0, size)
	for len(data) < size {
		switch n := r.IntN(200); {
		case len(data) > 0 && r.IntN(3) > 0:
			back := 1 + r.IntN(min(len(data), 40_000))
			for range n + 1 {
				data = append(data, data[len(data)-back])
			}
		case r.IntN(2) == 0:
			for range n {
				data = append(data, byte(r.IntN(256)))
			}
		default:
			for range n {
				data = append(data, byte('a'+r.IntN(4)))
			}
		}
	}
	return data[:size]
}

// Any stream has the content that libraries find in it, and a damaged one is refused if they refuse
// it.
func TestGzipAsLibraries(t *testing.T) {
	r := testseed.New(t)
	for range 60 {
		var blob bytes.Buffer
		for range 1 + r.IntN(3) {
			w := must(gzip.NewWriterLevel(&blob, r.IntN(12)-2))
			if r.IntN(4) == 0 {
				w.Name, w.Comment, w.Extra = "name", "comment", make([]byte, r.IntN(100))
			}
			must(w.Write(text(r, r.IntN(200_000))))
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		size := 1 + r.IntN(100_000)
		asLibraries(t, blob.Bytes(), size)
		for range 4 {
			damaged := bytes.Clone(blob.Bytes())
			for range 1 + r.IntN(2) {
				damaged[r.IntN(len(damaged))] ^= 1 << r.IntN(8)
			}
			asLibraries(t, damaged, size)
			asLibraries(t, damaged[:r.IntN(len(damaged))], size)
		}
		asLibraries(t, append(blob.Bytes(), byte(r.IntN(256)), 1), size)
	}
}

// FuzzGzip compares any input with the libraries.
func FuzzGzip(f *testing.F) {
	f.Fuzz(func(t *testing.T, blob []byte, size uint16) { asLibraries(t, blob, 1+int(size)) })
}

// An error of the input ends the stream with that error, not as a damaged stream.
func TestGzipErrorOfTheInput(t *testing.T) {
	blob := gzipped(text(testseed.New(t), 100_000), nil)
	broken := errors.New("connection reset")
	for _, at := range []int{0, 5, 12, len(blob) / 2, len(blob) - 9, len(blob) - 4, len(blob)} {
		in := io.MultiReader(bytes.NewReader(blob[:at]), iotest.ErrReader(broken))
		z, err := newGzipReader(bufio.NewReader(in))
		if err == nil {
			_, err = io.Copy(io.Discard, z)
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d of %d bytes: %v", at, len(blob), err)
		}
	}
}

// BenchmarkGzip decompresses 16 MiB that compress to a third.
func BenchmarkGzip(b *testing.B) {
	data := gzipped(text(rand.New(rand.NewPCG(1, 2)), 16<<20), nil)
	buf := make([]byte, 256<<10)
	for name, open := range map[string]func(*bufio.Reader) (io.Reader, error){
		"own":     func(in *bufio.Reader) (io.Reader, error) { return newGzipReader(in) },
		"library": func(in *bufio.Reader) (io.Reader, error) { return gzip.NewReader(in) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				z, err := open(bufio.NewReaderSize(bytes.NewReader(data), 64<<10))
				if err != nil {
					b.Fatal(err)
				}
				// The wrappers hide other ways to copy.
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{z}, buf)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
