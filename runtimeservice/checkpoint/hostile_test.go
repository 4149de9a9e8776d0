package checkpoint

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// hostileArchive returns a gzip-compressed archive of the entries that f writes.
func hostileArchive(t *testing.T, f func(*tar.Writer)) *Archive {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	f(w)
	for _, c := range []io.Closer{w, z, file} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// file writes an entry. The writer's errors appear when it is closed.
func file(w *tar.Writer, name string, text []byte) {
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(text))})
	_, _ = w.Write(text)
}

func refused(t *testing.T, err error, says string) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v, want an invalid argument that says %q", err, says)
	}
}

// A description that would decode to hundreds of megabytes is refused before decoding.
func TestDescribeRefusesManyValues(t *testing.T) {
	for _, text := range []string{
		`{"mounts":[` + strings.Repeat("{},", maxValues) + `{}]}`,
		strings.Repeat("[", maxNesting+1) + strings.Repeat("]", maxNesting+1),
	} {
		a := hostileArchive(t, func(w *tar.Writer) { file(w, SpecFile, []byte(text)) })
		_, err := a.Describe(t.Context())
		refused(t, err, "more than")
	}
}

// Reading an archive that expands to far more than its size stops at the limit.
func TestArchivesThatExpandEndAtTheLimit(t *testing.T) {
	zeros := make([]byte, 64<<20)
	a := hostileArchive(t, func(w *tar.Writer) {
		for n := range 2 * (freeExpansion / len(zeros)) {
			file(w, fmt.Sprintf("%s/pages-%d.img", ImagesDir, n), zeros)
		}
	})
	_, err := a.Describe(t.Context())
	refused(t, err, "times its own size")
}

// The size of a sparse file includes its holes, which the archive does not contain.
func TestSparseFilesCountWithTheirHoles(t *testing.T) {
	records := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n35 GNU.sparse.realsize=10737418240\n"
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	file(w, "PaxHeaders", []byte(records))
	file(w, ImagesDir+"/pages-1.img", append([]byte("0\n"), make([]byte, 510)...))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	header := archive.Bytes()[:512]
	header[156] = tar.TypeXHeader
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	refused(t, a.Unpack(t.Context(), t.TempDir(), 1<<40), "times its own size")
}

func TestUnpackBoundsFiles(t *testing.T) {
	a := hostileArchive(t, func(w *tar.Writer) {
		for n := range maxFiles + 1 {
			file(w, fmt.Sprintf("%s/%d", ImagesDir, n), nil)
		}
	})
	refused(t, a.Unpack(t.Context(), t.TempDir(), 1<<40), "more than 32768 files")
}

// An error of a decompressor is the archive's fault, whatever the error's type.
func TestDamagedCompressionIsAnInvalidArgument(t *testing.T) {
	a := hostileArchive(t, func(w *tar.Writer) { file(w, "x", []byte(strings.Repeat("0123456789", 1000))) })
	data, err := os.ReadFile(a.Name())
	if err != nil {
		t.Fatal(err)
	}
	for n := 20; n < len(data)-20; n++ {
		data[n] = 0xff
	}
	if err := os.WriteFile(a.Name(), data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = a.Describe(t.Context())
	refused(t, err, "damaged")
}

func TestZstdWindowIsBounded(t *testing.T) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithWindowSize(4*maxWindow))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 5*maxWindow)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := decompress(&out)
	if err == nil {
		_, err = io.Copy(io.Discard, in)
		_ = in.Close()
	}
	refused(t, tarError(err), "window")
}
