package overlay

import (
	"bufio"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sync/semaphore"
)

// splitWriter writes the tar-split form of a tar: gzipped lines of JSON. Each line is a range of
// raw bytes, or an entry with the checksum of its content in the layer's directory. The lines are
// those of tar/storage.NewJSONPacker, written ten times as fast. Unlike that packer, splitWriter
// accepts a repeated name: see repack.
type splitWriter struct {
	file     *os.File
	buf      *bufio.Writer
	gz       *gzip.Writer
	line     []byte
	position int64
	content  []byte // buffer of shadowed
	pool     *sync.Pool
}

// maxKeptLine bounds the buffer that a closed splitWriter keeps for the next file, in bytes.
const maxKeptLine = 64 << 10

// newSplitWriter creates a file. It takes the buffers and the compressor, half a megabyte, from a
// pool of closed splitWriters.
func newSplitWriter(path string, pool *sync.Pool) (*splitWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	w, ok := pool.Get().(*splitWriter)
	if !ok {
		w = &splitWriter{buf: bufio.NewWriterSize(nil, 64<<10), pool: pool}
		if w.gz, err = gzip.NewWriterLevel(nil, gzip.BestSpeed); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	w.file, w.position = f, 0
	w.buf.Reset(f)
	w.gz.Reset(w.buf)
	return w, nil
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

// close must be called exactly once; w belongs to the pool after it.
func (w *splitWriter) close() error {
	err := errors.Join(w.gz.Close(), w.buf.Flush(), w.file.Close())
	w.file = nil
	w.buf.Reset(nil)
	if cap(w.line) > maxKeptLine {
		w.line = nil
	}
	w.pool.Put(w)
	return err
}

// packItem is a range of raw bytes, or an entry.
type packItem struct {
	raw  []byte
	name string
	size int64    // of the content in the layer's directory
	job  *fileJob // writes the content; nil without content
}

// packer writes the tar-split file in its own goroutine, in the order of the tar. It waits for each
// file's checksum.
type packer struct {
	ctx     context.Context // of one Apply call, which this value does not outlive
	fail    context.CancelCauseFunc
	out     *splitWriter
	splits  *sync.Pool // where out belongs
	items   chan packItem
	room    *semaphore.Weighted // bytes of queued items
	count   int64               // of items, which is the position of the next one
	running sync.WaitGroup
}

// packQueue limits the memory of queued items, in bytes. A larger item waits until the queue is
// empty.
const packQueue = 4 << 20

// cost is the memory that an item takes from the queue's limit.
func (i packItem) cost() int64 { return min(packQueue, int64(len(i.raw)+len(i.name))+256) }

func startPacker(ctx context.Context, fail context.CancelCauseFunc, path string, splits *sync.Pool) (*packer, error) {
	out, err := newSplitWriter(path, splits)
	if err != nil {
		return nil, err
	}
	p := &packer{ctx: ctx, fail: fail, out: out, splits: splits, items: make(chan packItem, 256), room: semaphore.NewWeighted(packQueue)}
	p.running.Go(p.run)
	return p, nil
}

func (p *packer) add(i packItem) {
	p.count++
	if p.room.Acquire(p.ctx, i.cost()) == nil { // else the Apply call has ended
		p.items <- i
	}
}

func (p *packer) segment(raw []byte) {
	if len(raw) > 0 {
		p.add(packItem{raw: raw})
	}
}

func (p *packer) run() {
	for i := range p.items {
		if p.ctx.Err() == nil {
			if err := p.write(i); err != nil {
				p.fail(fmt.Errorf("write tar-split: %w", err))
			}
		}
		p.room.Release(i.cost())
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

// nameKey identifies the name of an entry: two hashes with random seeds, so that no tar can choose
// names that collide.
type nameKey [2]uint64

// nameTable maps each name to its last entry, without storing the names.
type nameTable struct {
	seeds [2]maphash.Seed
	last  map[nameKey]int64 // position in tar-split
	twice bool              // a name was repeated
}

func newNameTable() nameTable {
	return nameTable{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, last: map[nameKey]int64{}}
}

func (t *nameTable) key(name string) nameKey {
	name = path.Clean(name)
	return nameKey{maphash.String(t.seeds[0], name), maphash.String(t.seeds[1], name)}
}

func (t *nameTable) note(name string, position int64) {
	key := t.key(name)
	if _, ok := t.last[key]; ok {
		t.twice = true
	}
	t.last[key] = position
}

// keptMoved is the memory of a replaced and its node in a movedTree, in bytes.
const keptMoved = 256

// replaced is a file in the layer's directory that a later entry of the same tar replaced.
type replaced struct {
	dir      *node // where it was
	base     string
	position int64 // of the first item of tar-split after it was moved
}

// shadow returns the name of the nth moved file in the directory shadow.
func (replaced) shadow(n int) string { return strconv.Itoa(n) }

// movedTree finds where the file of a path was moved to.
type movedTree struct {
	moves    []movedTo // in the order of the tar
	children map[string]*movedTree
}

type movedTo struct {
	index    int // in extractor.moved
	position int64
}

func newMovedTree(moved []replaced) *movedTree {
	root := &movedTree{}
	known := map[*node]*movedTree{}
	for i, r := range moved {
		at := root.directory(r.dir, known).child(r.base)
		at.moves = append(at.moves, movedTo{i, r.position})
	}
	return root
}

// directory returns the movedTree of a directory. known caches its results.
func (t *movedTree) directory(n *node, known map[*node]*movedTree) *movedTree {
	if n.parent == nil {
		return t
	}
	at := known[n]
	if at == nil {
		at = t.directory(n.parent, known).child(n.base)
		known[n] = at
	}
	return at
}

func (t *movedTree) child(base string) *movedTree {
	if t.children == nil {
		t.children = map[string]*movedTree{}
	}
	if t.children[base] == nil {
		t.children[base] = &movedTree{}
	}
	return t.children[base]
}

// find returns the path below shadow to which the content of an entry was moved, or "": the first
// move, after the entry, of its path or a directory above.
func (t *movedTree) find(e *storage.Entry) string {
	name, err := cleanName(e.GetName())
	if err != nil {
		return ""
	}
	first, rest := -1, ""
	for more := true; more; {
		var base string
		base, name, more = strings.Cut(name, "/")
		if t = t.children[base]; t == nil {
			break
		}
		at, _ := slices.BinarySearchFunc(t.moves, int64(e.Position)+1, func(m movedTo, position int64) int {
			return cmp.Compare(m.position, position)
		})
		if at < len(t.moves) && (first < 0 || t.moves[at].index < first) {
			first, rest = t.moves[at].index, name
		}
	}
	if first < 0 {
		return ""
	}
	return path.Join(replaced{}.shadow(first), rest)
}

// repackArgs are the arguments of repack.
type repackArgs struct {
	path   string
	shadow int // open directory
	moved  []replaced
	names  *nameTable
	budget *budget
	splits *sync.Pool
}

// repack rewrites the tar-split file of a tar that repeats a name. Readers of the format accept
// each name once, and look up the content by name. So only the last entry of a name stays an entry;
// earlier ones become raw bytes.
func repack(ctx context.Context, a repackArgs) error {
	moved := newMovedTree(a.moved)
	out, err := newSplitWriter(a.path+".new", a.splits)
	if err != nil {
		return err
	}
	err = eachEntry(a.path, func(e *storage.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.budget.spend(costRepack + int64(len(e.Payload)+len(e.Name))*costRaw); err != nil {
			return err
		}
		if e.Type != storage.FileType {
			return out.segment(e.Payload)
		}
		where := moved.find(e)
		switch {
		case where != "" && e.Size > 0:
			if err := a.budget.spend(e.Size * costRaw); err != nil {
				return err
			}
			return out.shadowed(a.shadow, where, e.Size)
		case where != "" || a.names.last[a.names.key(e.GetName())] != int64(e.Position):
			return nil
		}
		return out.entry(e.GetName(), e.Size, e.Payload)
	})
	if err = errors.Join(err, out.close()); err != nil {
		return err
	}
	return os.Rename(a.path+".new", a.path)
}

// shadowed writes the content of a replaced file as raw bytes.
func (w *splitWriter) shadowed(shadow int, path string, size int64) error {
	f, err := openFile(shadow, path)
	if err != nil {
		return fmt.Errorf("open replaced file: %w", err)
	}
	defer func() { _ = f.Close() }()
	if w.content == nil {
		w.content = make([]byte, bufferSize)
	}
	for left := size; left > 0; {
		n, err := io.ReadFull(f, w.content[:min(left, bufferSize)])
		if err != nil {
			return fmt.Errorf("read replaced file: %w", err)
		}
		if err := w.segment(w.content[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// eachEntry reads a tar-split file, which may repeat names.
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
