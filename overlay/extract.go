package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names that AUFS gives a meaning in layer tars (image-spec, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// extractor turns the entries of one tar into a layer's directory. Its methods
// are for one goroutine.
type extractor struct {
	root    int    // open directory diff
	dir     string // that holds diff
	shadow  int    // open directory shadow, −1 until something is replaced
	tree    *node
	dirs    *dirCache
	tar     *tar.Reader
	record  *recorder
	pack    *packer
	writers *writers

	last       string // name of the last entry, for errors
	header     []byte // raw headers of the current entry; the packer reads them too
	parentName string // the directory of the last entry and what it resolved to
	parent     *node
	seed       maphash.Seed
	seen       map[uint64]struct{} // hashes of names
	twice      bool                // a name came twice, or two hashes met
	moved      []replaced

	entries, names, devices int
	sparse, size            int64
}

func newExtractor(root int, dir string) *extractor {
	tree := newDir(nil, ".")
	tree.implied = true
	return &extractor{
		root: root, dir: dir, shadow: -1, tree: tree, dirs: newDirCache(root),
		seed: maphash.MakeSeed(), seen: map[uint64]struct{}{},
	}
}

// count keeps the layer within its limits.
func (x *extractor) count(name string) error {
	x.entries++
	x.names += len(name)
	switch {
	case x.entries > maxEntries:
		return invalid("more than %d entries", maxEntries)
	case x.names > maxNames:
		return invalid("more than %d bytes of names", maxNames)
	}
	return nil
}

// entry extracts one entry and adds it to tar-split: first its headers, then
// its content (as raw bytes where the layer's directory does not hold it under
// the entry's name), then itself.
func (x *extractor) entry(h *tar.Header) error {
	x.header = x.record.take()
	x.pack.segment(x.header)
	if err := x.count(h.Name); err != nil {
		return err
	}
	hash := maphash.String(x.seed, path.Clean(h.Name))
	if _, ok := x.seen[hash]; ok {
		x.twice = true
	}
	x.seen[hash] = struct{}{}
	if h.Typeflag == tar.TypeXGlobalHeader {
		x.pack.add(packItem{name: h.Name})
		return nil
	}
	job, err := x.extract(h)
	if err != nil {
		return err
	}
	item := packItem{name: h.Name}
	if job != nil {
		item.job, item.size = job, h.Size
	}
	x.pack.add(item)
	return nil
}

// extract returns the job whose file will hold the entry's content, if there
// is one.
func (x *extractor) extract(h *tar.Header) (*fileJob, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return nil, err
	}
	if strings.Contains(name, whiteoutPrefix) {
		handled, err := x.special(name)
		if err != nil {
			return nil, err
		}
		if handled {
			return nil, x.keepContent(nil)
		}
	}
	m, err := newMeta(h)
	if err != nil {
		return nil, err
	}
	p, err := x.place(name)
	if err != nil {
		return nil, err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return nil, x.directory(p, m)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return x.regular(p, m, h)
	}
	return nil, x.other(p, m, h)
}

func (x *extractor) other(p place, m meta, h *tar.Header) error {
	if p.base == "." {
		return invalid("the root of the layer can only be a directory")
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return x.symlink(p, m, h.Linkname)
	case tar.TypeLink:
		return x.hardLink(p, m, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.device(p, m, h)
	}
	return invalid("unknown type %q", h.Typeflag)
}

// special handles names that have a meaning in AUFS.
func (x *extractor) special(name string) (handled bool, err error) {
	parts := strings.Split(name, "/")
	base := parts[len(parts)-1]
	for i, part := range parts {
		switch {
		case strings.HasPrefix(part, aufsPrefix) && (i < len(parts)-1 || part != opaqueName):
			return true, nil // AUFS's own bookkeeping
		case strings.HasPrefix(part, whiteoutPrefix) && i < len(parts)-1:
			return true, invalid("a whiteout is not a directory")
		}
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	p, err := x.place(name)
	if err != nil {
		return true, err
	}
	if base == opaqueName {
		return true, x.opaque(p.dir)
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return true, invalid("a whiteout of %q", hidden)
	}
	return true, x.whiteout(p.dir, hidden)
}

// place resolves the parent of an entry and makes what is missing of it.
func (x *extractor) place(name string) (place, error) {
	if name == "." {
		return place{dir: x.tree, base: "."}, nil
	}
	dir, base := path.Split(name)
	if len(base) > maxName {
		return place{}, invalid("a component of the name has %d bytes, the limit is %d", len(base), maxName)
	}
	dir = strings.TrimSuffix(dir, "/")
	if x.parent != nil && dir == x.parentName {
		return place{dir: x.parent, base: base}, nil
	}
	if dir == "" {
		return place{dir: x.tree, base: base}, nil
	}
	w := walker{root: x.tree, makeDir: x.imply}
	n, err := w.directory(dir)
	if err != nil {
		return place{}, fmt.Errorf("find parent directory: %w", err)
	}
	if !w.followed {
		x.parentName, x.parent = dir, n
	}
	return place{dir: n, base: base, followed: w.followed}, nil
}

// imply makes a directory that the tar has not listed.
func (x *extractor) imply(parent *node, base string) (*node, error) {
	if len(base) > maxName {
		return nil, invalid("a component of the name has %d bytes, the limit is %d", len(base), maxName)
	}
	if err := x.count(parent.path(base)); err != nil {
		return nil, err
	}
	n, err := x.mkdir(place{dir: parent, base: base})
	if err != nil {
		return nil, err
	}
	n.implied = true
	return n, nil
}

// mkdir makes a directory where there is none.
func (x *extractor) mkdir(p place) (*node, error) {
	hides, err := x.vacate(p)
	if err != nil {
		return nil, err
	}
	d, err := x.dirs.get(p.dir)
	if err != nil {
		return nil, err
	}
	defer d.release()
	if err := unix.Mkdirat(d.fd, p.base, 0o755); err != nil {
		return nil, fmt.Errorf("make directory %q: %w", p.path(), err)
	}
	if err := unix.Fchmodat(d.fd, p.base, 0o755, 0); err != nil {
		return nil, fmt.Errorf("make directory %q: %w", p.path(), err)
	}
	n := newDir(p.dir, p.base)
	p.dir.children[p.base] = n
	if hides {
		return n, x.opaque(n)
	}
	return n, nil
}

func (x *extractor) directory(p place, m meta) error {
	n := p.dir
	if p.base != "." {
		n = p.dir.children[p.base]
		if n == nil || n.kind != kindDir {
			var err error
			if n, err = x.mkdir(p); err != nil {
				return err
			}
		}
	}
	d, err := x.dirs.get(n)
	if err != nil {
		return err
	}
	defer d.release()
	if err := m.applyFd(d.fd); err != nil {
		return err
	}
	n.implied, n.times = false, &m.times
	return nil
}

// regular hands a file to the writers.
func (x *extractor) regular(p place, m meta, h *tar.Header) (*fileJob, error) {
	if p.base == "." {
		return nil, invalid("the root of the layer can only be a directory")
	}
	job := &fileJob{base: p.base, path: h.Name, meta: m, size: h.Size, sparse: isSparse(h)}
	if job.sparse {
		if x.sparse += h.Size; x.sparse > maxSparse || x.sparse < 0 {
			return nil, invalid("sparse files stand for more than %d bytes", int64(maxSparse))
		}
	}
	hides, err := x.vacate(p)
	if err != nil {
		return nil, err
	}
	if job.dir, err = x.dirs.get(p.dir); err != nil {
		return nil, err
	}
	p.dir.children[p.base] = &node{kind: kindOther, hides: hides}
	x.size += h.Size
	// Where the content is not under this name in the form of the tar,
	// tar-split keeps it.
	switch {
	case job.sparse:
		return nil, x.sparseContent(h, job)
	case p.followed:
		return nil, x.keepContent(job)
	}
	x.record.off = true
	err = x.readContent(job)
	x.record.off = false
	if h.Size == 0 {
		return nil, err
	}
	return job, err
}

// readContent passes the content of the current entry to a writer.
func (x *extractor) readContent(job *fileJob) error {
	if job.size <= bufferSize {
		c := chunk{n: int(job.size)}
		if c.n > 0 {
			c.buf = x.writers.buffer()
			if _, err := io.ReadFull(x.tar, (*c.buf)[:c.n]); err != nil {
				job.dir.release()
				return fmt.Errorf("read content: %w", truncated(err))
			}
		}
		job.chunk = c
		x.writers.submit(job)
		return nil
	}
	job.chunks = make(chan chunk, chunkQueue)
	x.writers.submit(job)
	defer close(job.chunks)
	return x.eachChunk(func(c chunk) error { return x.send(job, c) })
}

func (x *extractor) send(job *fileJob, c chunk) error {
	select {
	case job.chunks <- c:
		return nil
	case <-x.writers.ctx.Done():
		return context.Cause(x.writers.ctx)
	}
}

// keepContent records the content of the current entry as raw bytes and, with
// a job, also writes the file.
func (x *extractor) keepContent(job *fileJob) error {
	send := func(c chunk) error {
		x.writers.recycle(c)
		return nil
	}
	if job != nil {
		job.chunks = make(chan chunk, chunkQueue)
		x.writers.submit(job)
		defer close(job.chunks)
		send = func(c chunk) error { return x.send(job, c) }
	}
	return x.eachChunk(func(c chunk) error {
		x.pack.segment(x.record.take())
		return send(c)
	})
}

// eachChunk reads the content of the current entry.
func (x *extractor) eachChunk(f func(chunk) error) error {
	for {
		buf := x.writers.buffer()
		n, err := io.ReadFull(x.tar, *buf)
		if n > 0 {
			if err := f(chunk{buf: buf, n: n}); err != nil {
				return err
			}
		} else {
			x.writers.recycle(chunk{buf: buf})
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && x.atEnd() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read content: %w", truncated(err))
		}
	}
}

// atEnd tells a short last chunk from a truncated tar.
func (x *extractor) atEnd() bool {
	_, err := x.tar.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (x *extractor) symlink(p place, m meta, target string) error {
	if target == "" || len(target) >= maxPath || strings.IndexByte(target, 0) >= 0 {
		return invalid("bad target of a symbolic link")
	}
	hides, err := x.vacate(p)
	if err != nil {
		return err
	}
	d, err := x.dirs.get(p.dir)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Symlinkat(target, d.fd, p.base); err != nil {
		return fmt.Errorf("make symbolic link: %w", err)
	}
	p.dir.children[p.base] = &node{kind: kindSymlink, target: target, hides: hides}
	x.size += int64(len(target))
	return m.applyAt(d.fd, p.base, true)
}

// hardLink links to an earlier entry of the same tar. Like dockerd, it then
// gives the inode the owner, mode and times that the link's entry has.
func (x *extractor) hardLink(p place, m meta, target string) error {
	t, n, err := x.linkTarget(target)
	if err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	if t.dir == p.dir && t.base == p.base {
		return invalid("a hard link to itself")
	}
	hides, err := x.vacate(p)
	if err != nil {
		return err
	}
	if err := x.writers.settle(); err != nil {
		return err
	}
	from, err := x.dirs.get(t.dir)
	if err != nil {
		return err
	}
	defer from.release()
	to, err := x.dirs.get(p.dir)
	if err != nil {
		return err
	}
	defer to.release()
	if err := unix.Linkat(from.fd, t.base, to.fd, p.base, 0); err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	p.dir.children[p.base] = &node{kind: n.kind, target: n.target, hides: hides}
	return m.applyAt(to.fd, p.base, n.kind == kindSymlink)
}

// linkTarget finds what a hard link names, without following a link at its end.
func (x *extractor) linkTarget(target string) (place, *node, error) {
	name, err := cleanName(target)
	if err != nil {
		return place{}, nil, err
	}
	dir, base := path.Split(name)
	w := walker{root: x.tree}
	n, err := w.directory(path.Clean(dir))
	if err != nil {
		return place{}, nil, err
	}
	at := n.children[base]
	switch {
	case at == nil || at.kind == kindWhiteout:
		return place{}, nil, invalid("the target is not in this layer")
	case at.kind == kindDir:
		return place{}, nil, invalid("the target is a directory")
	}
	return place{dir: n, base: base}, at, nil
}

func (x *extractor) device(p place, m meta, h *tar.Header) error {
	var typ uint32
	switch h.Typeflag {
	case tar.TypeChar:
		typ = unix.S_IFCHR
	case tar.TypeBlock:
		typ = unix.S_IFBLK
	default:
		typ = unix.S_IFIFO
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return invalid("device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	if x.devices++; x.devices > maxDevices {
		return invalid("more than %d device nodes", maxDevices)
	}
	hides, err := x.vacate(p)
	if err != nil {
		return err
	}
	d, err := x.dirs.get(p.dir)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Mknodat(d.fd, p.base, typ|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	p.dir.children[p.base] = &node{kind: kindOther, hides: hides}
	return m.applyAt(d.fd, p.base, false)
}

// whiteout hides a name of the layers below. What this layer itself has under
// the name stays, whichever comes first in the tar.
func (x *extractor) whiteout(dir *node, base string) error {
	old := dir.children[base]
	switch {
	case old != nil && old.kind == kindDir:
		return x.opaque(old)
	case old != nil:
		old.hides = true
		return nil
	}
	d, err := x.dirs.get(dir)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Mknodat(d.fd, base, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	dir.children[base] = &node{kind: kindWhiteout, hides: true}
	return nil
}

// opaque hides everything that the layers below have in a directory.
func (x *extractor) opaque(n *node) error {
	d, err := x.dirs.get(n)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Fsetxattr(d.fd, opaqueAttr, []byte{'y'}, 0); err != nil {
		return fmt.Errorf("make directory %q opaque: %w", n.name, err)
	}
	n.hides = true
	return nil
}

// vacate makes room for a new thing and tells whether a whiteout was or
// belongs to its place. What may hold content moves to the directory shadow,
// because tar-split still needs it.
func (x *extractor) vacate(p place) (hides bool, err error) {
	old := p.dir.children[p.base]
	if old == nil {
		return false, nil
	}
	if err := x.writers.settle(); err != nil {
		return false, err
	}
	d, err := x.dirs.get(p.dir)
	if err != nil {
		return false, err
	}
	defer d.release()
	switch old.kind {
	case kindWhiteout:
		err = unix.Unlinkat(d.fd, p.base, 0)
	default:
		err = x.move(d.fd, p, old)
	}
	if err != nil {
		return false, fmt.Errorf("replace %q: %w", p.path(), err)
	}
	delete(p.dir.children, p.base)
	return old.hides, nil
}

func (x *extractor) move(dirfd int, p place, old *node) error {
	if x.shadow < 0 {
		name := filepath.Join(x.dir, shadowName)
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		x.shadow = fd
	}
	to := strconv.Itoa(len(x.moved))
	if err := unix.Renameat(dirfd, p.base, x.shadow, to); err != nil {
		return err
	}
	x.moved = append(x.moved, replaced{path: p.path(), shadow: to, position: x.pack.count})
	if old.kind != kindDir {
		return nil
	}
	x.parent = nil // it may be in there
	return old.each(func(n *node) error {
		x.dirs.drop(n)
		return nil
	})
}

func (x *extractor) dropShadow() error {
	if x.shadow < 0 {
		return nil
	}
	return os.RemoveAll(filepath.Join(x.dir, shadowName))
}

func (x *extractor) close() {
	if x.shadow >= 0 {
		_ = unix.Close(x.shadow)
	}
	_ = unix.Close(x.root)
}
