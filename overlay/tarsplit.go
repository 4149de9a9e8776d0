package overlay

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/storage"
)

// splitWriter writes the tar-split form of a tar: gzipped lines of JSON, one
// for each stretch of raw bytes and one for each entry whose content lies in
// the layer's directory, with a checksum. It writes the lines that
// tar/storage.NewJSONPacker writes, an order of magnitude faster, and without
// its refusal of a name that comes twice: see repack.
type splitWriter struct {
	file     *os.File
	buf      *bufio.Writer
	gz       *gzip.Writer
	line     []byte
	position int64
}

func newSplitWriter(path string) (*splitWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	buf := bufio.NewWriterSize(f, 64<<10)
	gz, err := gzip.NewWriterLevel(buf, gzip.BestSpeed)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &splitWriter{file: f, buf: buf, gz: gz}, nil
}

func (w *splitWriter) segment(raw []byte) error {
	w.line = append(w.line[:0], `{"type":2,"payload":"`...)
	w.line = base64.StdEncoding.AppendEncode(w.line, raw)
	w.line = append(w.line, '"')
	return w.finishLine()
}

func (w *splitWriter) entry(name string, size int64, sum []byte) error {
	w.line = append(w.line[:0], `{"type":1`...)
	switch {
	case !utf8.ValidString(name):
		w.line = append(w.line, `,"name_raw":"`...)
		w.line = base64.StdEncoding.AppendEncode(w.line, []byte(name))
		w.line = append(w.line, '"')
	case name != "":
		quoted, err := json.Marshal(name)
		if err != nil {
			return err
		}
		w.line = append(w.line, `,"name":`...)
		w.line = append(w.line, quoted...)
	}
	if size > 0 {
		w.line = append(w.line, `,"size":`...)
		w.line = strconv.AppendInt(w.line, size, 10)
		w.line = append(w.line, `,"payload":"`...)
		w.line = base64.StdEncoding.AppendEncode(w.line, sum)
		w.line = append(w.line, '"')
	} else {
		w.line = append(w.line, `,"payload":null`...)
	}
	return w.finishLine()
}

func (w *splitWriter) finishLine() error {
	w.line = append(w.line, `,"position":`...)
	w.line = strconv.AppendInt(w.line, w.position, 10)
	w.line = append(w.line, '}', '\n')
	w.position++
	_, err := w.gz.Write(w.line)
	return err
}

func (w *splitWriter) close() error {
	return errors.Join(w.gz.Close(), w.buf.Flush(), w.file.Close())
}

// packItem is a stretch of raw bytes, or an entry.
type packItem struct {
	raw  []byte
	name string
	size int64    // of the content that lies in the layer's directory
	job  *fileJob // that writes the content; nil without content
}

// packer writes the tar-split file in a goroutine of its own, in the order of
// the tar, waiting for each file's checksum.
type packer struct {
	ctx     context.Context // of one Apply call, which this value does not outlive
	fail    context.CancelCauseFunc
	out     *splitWriter
	items   chan packItem
	count   int64 // of items, which is the position of the next one
	running sync.WaitGroup
}

func startPacker(ctx context.Context, fail context.CancelCauseFunc, path string) (*packer, error) {
	out, err := newSplitWriter(path)
	if err != nil {
		return nil, err
	}
	p := &packer{ctx: ctx, fail: fail, out: out, items: make(chan packItem, 256)}
	p.running.Go(p.run)
	return p, nil
}

func (p *packer) add(i packItem) {
	p.items <- i
	p.count++
}

func (p *packer) segment(raw []byte) {
	if len(raw) > 0 {
		p.add(packItem{raw: raw})
	}
}

func (p *packer) run() {
	for i := range p.items {
		if p.ctx.Err() != nil {
			continue // drain
		}
		if err := p.write(i); err != nil {
			p.fail(fmt.Errorf("write tar-split: %w", err))
		}
	}
	if err := p.out.close(); err != nil && p.ctx.Err() == nil {
		p.fail(fmt.Errorf("write tar-split: %w", err))
	}
}

func (p *packer) write(i packItem) error {
	if i.raw != nil {
		return p.out.segment(i.raw)
	}
	if i.job == nil {
		return p.out.entry(i.name, 0, nil)
	}
	select {
	case <-i.job.done:
		return p.out.entry(i.name, i.size, i.job.sum)
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// close waits for the goroutine to end.
func (p *packer) close() {
	close(p.items)
	p.running.Wait()
}

// replaced is something in the layer's directory that a later entry of the same
// tar took the place of.
type replaced struct {
	path     string // where it was
	shadow   string // its name in the directory shadow
	position int64  // of the first item of tar-split after it was moved
}

// repack rewrites a tar-split file after a tar that names something twice.
// Readers of the format allow every name once and look its content up by that
// name, so only the last entry of a name stays one; the content of those before
// it becomes raw bytes.
func repack(path string, shadow int, moved []replaced) error {
	last, err := lastPositions(path)
	if err != nil {
		return err
	}
	out, err := newSplitWriter(path + ".new")
	if err != nil {
		return err
	}
	err = eachEntry(path, func(e *storage.Entry) error {
		if e.Type != storage.FileType {
			return out.segment(e.Payload)
		}
		where := findReplaced(moved, e)
		switch {
		case where != "" && e.Size > 0:
			return out.shadowed(shadow, where, e.Size)
		case where != "" || last[filepath.Clean(e.GetName())] != int64(e.Position):
			return nil
		}
		return out.entry(e.GetName(), e.Size, e.Payload)
	})
	if err = errors.Join(err, out.close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func lastPositions(path string) (map[string]int64, error) {
	last := map[string]int64{}
	err := eachEntry(path, func(e *storage.Entry) error {
		if e.Type == storage.FileType {
			last[filepath.Clean(e.GetName())] = int64(e.Position)
		}
		return nil
	})
	return last, err
}

// findReplaced returns the path below shadow to which the content of an entry
// was moved, or "".
func findReplaced(moved []replaced, e *storage.Entry) string {
	name, err := cleanName(e.GetName())
	if err != nil {
		return ""
	}
	for _, m := range moved {
		if m.position <= int64(e.Position) {
			continue
		}
		if name == m.path {
			return m.shadow
		}
		if rest, ok := cutDirectory(name, m.path); ok {
			return m.shadow + "/" + rest
		}
	}
	return ""
}

func cutDirectory(name, dir string) (rest string, ok bool) {
	if len(name) > len(dir) && name[len(dir)] == '/' && name[:len(dir)] == dir {
		return name[len(dir)+1:], true
	}
	return "", false
}

// shadowed writes the content of a replaced file as raw bytes.
func (w *splitWriter) shadowed(shadow int, path string, size int64) error {
	f, err := openFile(shadow, path)
	if err != nil {
		return fmt.Errorf("open replaced file: %w", err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, bufferSize)
	for left := size; left > 0; {
		n, err := io.ReadFull(f, buf[:min(left, bufferSize)])
		if err != nil {
			return fmt.Errorf("read replaced file: %w", err)
		}
		if err := w.segment(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// eachEntry reads a tar-split file, names that come twice included.
func eachEntry(path string, f func(*storage.Entry) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	gz, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		return err
	}
	dec := json.NewDecoder(gz)
	for {
		var e storage.Entry
		if err := dec.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := f(&e); err != nil {
			return err
		}
	}
}
