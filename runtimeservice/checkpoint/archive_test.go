package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	configText = `{"id":"abc","name":"c","rootfsImageName":"registry.test/x:1","rootfsImageRef":"sha256:1","runtime":"runc","createdTime":"2026-01-02T03:04:05Z"}`
	specText   = `{"ociVersion":"1.0.2","process":{"args":["sleep","1"],"cwd":"/"},"linux":{},"annotations":{"io.kubernetes.cri.container-name":"c"}}`
	streams    = `["/dev/null","pipe:[1]","pipe:[2]"]`
)

// files returns the content of a checkpoint, by file name.
func files() map[string]string {
	return map[string]string{
		ConfigFile: configText, SpecFile: specText, ImagesDir + "/pages-1.img": "memory", ImagesDir + "/" + descriptorsFile: streams,
		DeletedFile: `["etc/gone"]`, LogFile: "line\n", RootfsDiffFile: "tar", VolumesDir + "/0.tar": "volume", DumpLog: "log", "foreign": "left alone",
	}
}

func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func readFiles(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		found[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Property: a written archive can be read by this package and by checkpointctl's library.
func TestArchiveRoundTrip(t *testing.T) {
	from, place := t.TempDir(), t.TempDir()
	writeFiles(t, from, files())
	location := filepath.Join(place, "c.tar")
	if err := os.WriteFile(location, []byte("older"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := CheckLocation(location); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), WriteArgs{From: from, Temp: TempName(location, "1"), Location: location}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(location); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: memory is for its owner only", st.Mode(), err)
	}
	if names := readFiles(t, place); len(names) != 1 {
		t.Errorf("beside the archive there are %v", names)
	}
	data, err := os.ReadFile(location)
	if err != nil {
		t.Fatal(err)
	}
	plain := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, "/") {
			text, _ := io.ReadAll(r)
			writeFiles(t, plain, map[string]string{h.Name: string(text)})
		}
	}
	config, _, err := metadata.ReadContainerCheckpointConfigDump(plain)
	if err != nil || config.ID != "abc" || config.RootfsImageName != "registry.test/x:1" {
		t.Errorf("checkpointctl reads %+v, %v", config, err)
	}
	wantUnpacked(t, location)
}

// wantUnpacked reads an archive of files().
func wantUnpacked(t *testing.T, location string) {
	t.Helper()
	a, err := Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	wantContent(t, a)
}

func wantContent(t *testing.T, a *Archive) {
	t.Helper()
	d, err := a.Describe(t.Context())
	if err != nil || d.Config.ID != "abc" || !slices.Equal(d.Spec.Process.Args, []string{"sleep", "1"}) {
		t.Errorf("Describe = %+v, %v", d, err)
	}
	into := t.TempDir()
	if err := a.Unpack(t.Context(), into, 1<<20); err != nil {
		t.Fatal(err)
	}
	want := files()
	for _, name := range []string{ConfigFile, SpecFile, DumpLog, "foreign"} {
		delete(want, name)
	}
	if diff := cmp.Diff(want, readFiles(t, into)); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
	deleted, err := ReadDeleted(into)
	if err != nil || !slices.Equal(deleted, []string{"etc/gone"}) {
		t.Errorf("ReadDeleted = %q, %v", deleted, err)
	}
	three, err := ReadStreams(into)
	if err != nil || three[0].Pipe() || !three[1].Pipe() || !three[2].Pipe() {
		t.Errorf("ReadStreams = %q, %v", three, err)
	}
}

func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"./", "./checkpoint/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func save(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestArchivesOfOthers reads archives of podman, which are compressed, of CRI-O, which has another
// name for the log, and the layer of an image.
func TestArchivesOfOthers(t *testing.T) {
	data := tarOf(t, files())
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(data)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	crio := files()
	delete(crio, LogFile)
	crio[crioLogFile] = "line\n"
	dotted := map[string]string{}
	for name, text := range files() {
		dotted["./"+name] = text
	}
	for name, data := range map[string][]byte{
		"plain": data, "gzip": zipped.Bytes(), "zstd": encoder.EncodeAll(data, nil), "cri-o": tarOf(t, crio), "dotted": tarOf(t, dotted),
	} {
		t.Run(name, func(t *testing.T) { wantUnpacked(t, save(t, data)) })
	}
	t.Run("stream", func(t *testing.T) {
		open := 0
		wantContent(t, OpenStream("image", func(context.Context) (io.ReadCloser, error) {
			open++
			return closer{bytes.NewReader(data), func() { open-- }}, nil
		}, func() {}))
		if open != 0 {
			t.Errorf("%d streams are left open", open)
		}
	})
}

type closer struct {
	io.Reader
	closed func()
}

func (c closer) Close() error {
	c.closed()
	return nil
}

// with returns files() with some replaced, or removed if the new content is "".
func with(changes map[string]string) map[string]string {
	all := files()
	for name, text := range changes {
		if all[name] = text; text == "" {
			delete(all, name)
		}
	}
	return all
}

// badArchives are refused by Describe or Unpack. The keys say what is wrong with them; each has a
// part of the expected error.
func badArchives(t testing.TB) map[string]struct {
	data []byte
	says string
} {
	t.Helper()
	link := func(name, target string) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range []tar.Header{{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, {Typeflag: tar.TypeReg, Name: name + "/passwd"}} {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		good := tarOf(t, files())
		return append(buf.Bytes(), good...) // the first tar has no end marker
	}
	whole := tarOf(t, files())
	twice := slices.Concat(whole[:len(whole)-1024], tarOf(t, map[string]string{ImagesDir + "/pages-1.img": "again"}))
	return map[string]struct {
		data []byte
		says string
	}{
		"nothing":               {nil, "damaged"},
		"no tar":                {bytes.Repeat([]byte("no tar "), 1000), "damaged"},
		"cut":                   {whole[:len(whole)/2], ""},
		"leaves the archive":    {tarOf(t, with(map[string]string{"../evil": "x"})), "leaves the archive"},
		"leaves it inside":      {tarOf(t, with(map[string]string{"checkpoint/../../evil": "x"})), "leaves the archive"},
		"absolute":              {tarOf(t, with(map[string]string{"/etc/evil": "x"})), "bad name"},
		"the images are a link": {link(ImagesDir, "/etc"), "is not a directory"},
		"an image is a link":    {link(ImagesDir+"/x.img", "/etc/passwd"), "is not a file"},
		"twice":                 {twice, "is duplicated"},
		"no config":             {tarOf(t, with(map[string]string{ConfigFile: ""})), ConfigFile + " is missing"},
		"no spec":               {tarOf(t, with(map[string]string{SpecFile: ""})), SpecFile + " is missing"},
		"config is no JSON":     {tarOf(t, with(map[string]string{ConfigFile: "{"})), "decode " + ConfigFile},
		"spec of nothing":       {tarOf(t, with(map[string]string{SpecFile: "{}"})), "has no process"},
		"large config":          {tarOf(t, with(map[string]string{ConfigFile: strings.Repeat(" ", maxMetadata+1)})), "larger than"},
		"spec of many mounts":   {tarOf(t, with(map[string]string{SpecFile: `{"mounts":[` + strings.Repeat("{},", 1<<20) + `{}]}`})), "more than 262144 values"},
		"nested spec":           {tarOf(t, with(map[string]string{SpecFile: strings.Repeat("[", 1<<20)})), "within each other"},
		"no images":             {tarOf(t, map[string]string{ConfigFile: configText, SpecFile: specText}), "no CRIU images"},
		"more than allowed":     {tarOf(t, with(map[string]string{ImagesDir + "/pages-2.img": strings.Repeat("x", 1<<21)})), "larger than the limit"},
		"gzip of nothing":       {[]byte("\x1f\x8b\x08\x00"), "damaged"},
		"zstd of nothing":       {[]byte("\x28\xb5\x2f\xfd\x00"), ""},
	}
}

// Property: a bad archive is ErrInvalidArgument, the error says what is wrong, and nothing is
// written outside of the directory.
func TestBadArchives(t *testing.T) {
	for name, tc := range badArchives(t) {
		t.Run(name, func(t *testing.T) {
			a, err := Open(save(t, tc.data))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.Close() }()
			around := t.TempDir()
			into := filepath.Join(around, "into")
			if err := os.Mkdir(into, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err = a.Describe(t.Context())
			if err == nil {
				err = a.Unpack(t.Context(), into, 1<<20)
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), a.Name()) {
				t.Errorf("error %v, want an invalid argument that says %q", err, tc.says)
			}
			if names, _ := os.ReadDir(around); len(names) != 1 {
				t.Errorf("outside there are %v", names)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a directory = %v", err)
	}
	if _, err := Open("/dev/zero"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a device = %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errdefs.IsNotFound(err) {
		t.Errorf("nothing = %v", err)
	}
}

func TestCheckLocation(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"file": ""})
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for location, ok := range map[string]bool{
		dir + "/new.tar": true, dir + "/file": true, "": false, "relative.tar": false, dir: false, dir + "/none/x.tar": false,
		dir + "/file/x.tar": false, dir + "/link": false, dir + "/x\x00": false, dir + "/": false, "/dev/null": false,
	} {
		if err := CheckLocation(location); (err == nil) != ok || !ok && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", location, err)
		}
	}
}

// TestWriteLeavesNothing holds that a failed Write keeps the previous file.
func TestWriteLeavesNothing(t *testing.T) {
	from, place := t.TempDir(), t.TempDir()
	writeFiles(t, from, files())
	location := filepath.Join(place, "c.tar")
	writeFiles(t, place, map[string]string{"c.tar": "older"})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(cancelled, WriteArgs{From: from, Temp: TempName(location, "1"), Location: location}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after the end of its context = %v", err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), WriteArgs{From: from, Temp: TempName(location, "2"), Location: location}); err == nil {
		t.Error("a link is packed")
	}
	if got := readFiles(t, place); len(got) != 1 || got["c.tar"] != "older" {
		t.Errorf("left: %v", got)
	}
}

func TestOpenTar(t *testing.T) {
	dir := t.TempDir()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte("content"))
	_ = z.Close()
	writeFiles(t, dir, map[string]string{"plain.tar": "content", "zipped.tar": zipped.String(), "bad.tar": "\x1f\x8b"})
	for name, want := range map[string]string{"plain.tar": "content", "zipped.tar": "content", "none.tar": ""} {
		r, err := OpenTar(t.Context(), dir, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := OpenTar(t.Context(), dir, "bad.tar"); err == nil {
		t.Error("half a header is opened")
	}
}

// Property: a truncated archive is refused, also if it is cut between two entries.
func TestCutArchives(t *testing.T) {
	whole := tarOf(t, files())
	for n := 0; n < len(whole)-1024; n += tarBlock {
		a, err := Open(save(t, whole[:n]))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Unpack(t.Context(), t.TempDir(), 1<<20); !errdefs.IsInvalidArgument(err) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(whole), err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// FuzzArchive checks that for any bytes nothing is written outside of the directory, and no more
// than the limit inside.
func FuzzArchive(f *testing.F) {
	f.Add(tarOf(f, files()))
	for _, tc := range badArchives(f) {
		f.Add(tc.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Open(save(t, data))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = a.Close() }()
		around := t.TempDir()
		into := filepath.Join(around, "into")
		if err := os.Mkdir(into, 0o700); err != nil {
			t.Fatal(err)
		}
		const limit = 1 << 16
		_, _ = a.Describe(t.Context())
		_ = a.Unpack(t.Context(), into, limit)
		if names, _ := os.ReadDir(around); len(names) != 1 {
			t.Errorf("outside there are %v", names)
		}
		size := 0
		for _, text := range readFiles(t, into) {
			size += len(text)
		}
		if size > limit {
			t.Errorf("%d bytes are unpacked", size)
		}
	})
}
