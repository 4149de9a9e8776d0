package overlay

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
)

// TestTarSplitAsDockerd: the tar-split file has the same lines as dockerd's.
func TestTarSplitAsDockerd(t *testing.T) {
	for name, data := range map[string][]byte{
		"built": buildTar(t, dir("./"), file("./a", "1"), file(`q"<&>`+"\n", strings.Repeat("x", 5000)), symlink("s", "a"), hardlink("h", "./a"),
			device("n", tar.TypeChar, 1, 3), file(".wh.gone", ""), file("empty", ""), file("big", strings.Repeat("0123456789", 1<<17)),
			plain(file("caf\xe9", "latin1")), file("ünïcode", "x"), file(strings.Repeat("long/", 50)+"name", "x")),
		"gnu tar": run(t, "/", "tar", "--ignore-failed-read", "--warning=none", "-cf", "-", "/usr/share/zoneinfo/Europe", "/etc/ssl"),
	} {
		t.Run(name, func(t *testing.T) {
			var want bytes.Buffer
			r, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(data), storage.NewJSONPacker(&want), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			s := newStore(t)
			l := register(t, s, "", data)
			if d := cmp.Diff(strings.Split(want.String(), "\n"), strings.Split(string(splitLines(t, s, l)), "\n")); d != "" {
				t.Errorf("lines differ (-dockerd +Mica):\n%.4000s", d)
			}
		})
	}
}

func splitLines(t *testing.T, s *Store, l Layer) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(s.paths.layer(l.ID), tarSplitName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := io.ReadAll(gz)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
