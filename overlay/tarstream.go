package overlay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// TarStream returns the uncompressed tar of a layer, bit for bit, from tar-split and the layer's
// files. SweepUnused cannot remove the layer until the stream is closed. Read returns an error if a
// file has changed, or when ctx ends. TarStream returns errdefs.ErrNotFound if the layer does not
// exist.
func (s *Store) TarStream(ctx context.Context, chain digest.Digest) (io.ReadCloser, error) {
	release, err := s.Hold(chain)
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	t, err := s.tarStream(chain)
	if err != nil {
		release()
		return nil, fmt.Errorf("read layer %s: %w", chain, err)
	}
	r, w := io.Pipe()
	t.PipeReader = r
	t.stop = context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	// The function above runs some time after ctx has ended. Until then no more is written.
	untilEnd := writerFunc(func(p []byte) (int, error) {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		return w.Write(p)
	})
	t.running.Go(func() {
		err := asm.WriteOutputTarStream(&fileGetter{t.root}, t.unpacker, untilEnd)
		if err != nil {
			err = fmt.Errorf("read layer %s: %w", chain, err)
		}
		_ = w.CloseWithError(err)
		release()
	})
	return t, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// tarStream is a layer's tar that a goroutine assembles.
type tarStream struct {
	*io.PipeReader
	root     int // open directory diff
	file     *os.File
	unpacker storage.Unpacker
	stop     func() bool
	running  sync.WaitGroup
	once     sync.Once
}

func (s *Store) tarStream(chain digest.Digest) (_ *tarStream, err error) {
	l, err := s.Layer(chain)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(s.paths.layer(chain), tarSplitName))
	if err != nil {
		return nil, err
	}
	gz, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open tar-split: %w", err), file.Close())
	}
	root, err := unix.Open(s.paths.diff(l.CacheID), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "open", Path: s.paths.diff(l.CacheID), Err: err}, file.Close())
	}
	return &tarStream{root: root, file: file, unpacker: storage.NewJSONUnpacker(gz)}, nil
}

// Close ends the stream and waits for its goroutine. More calls do nothing.
func (t *tarStream) Close() error {
	t.once.Do(func() {
		t.stop()
		_ = t.PipeReader.Close()
		t.running.Wait()
		_ = unix.Close(t.root)
		_ = t.file.Close()
	})
	return nil
}

// fileGetter opens the files of a layer for tar-split.
type fileGetter struct{ root int }

// Get implements storage.FileGetter. Like dockerd, it follows symbolic links of the layer, but only
// within the layer.
func (g *fileGetter) Get(name string) (io.ReadCloser, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", name, err)
	}
	f, err := openFile(g.root, clean)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", name, err)
	}
	return f, nil
}

// openFile opens a regular file. It resolves the name as if root were the root directory.
func openFile(root int, name string) (*os.File, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.Join(errors.New("not a regular file"), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
