package overlay

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Names with a special meaning in layer tars (image-spec, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// extractor writes the entries of one tar to a layer's directory. One goroutine may use it at a
// time.
type extractor struct {
	root    int    // open directory diff
	dir     string // parent of diff
	shadow  int    // open directory shadow, −1 until something is replaced
	tree    *node
	dirs    *dirCache
	tar     *tar.Reader
	record  *recorder
	pack    *packer
	writers *writers
	budget  *budget

	last       string // name of the last entry, for errors
	header     []byte // raw headers of the current entry; the packer reads them too
	parentName string // the directory of the last entry and what it resolved to
	parent     place  // its base is not used
	names      nameTable
	moved      []replaced
	aufs       map[string]*aufsFile // files that AUFS keeps for hard links, by name
	files      [2]*node             // shared nodes of all files: [0] hide nothing, [1] hide a name below

	bytesOfNames, devices, asides int
	sparse, size                  int64
}

func newExtractor(root int, dir string, b *budget) *extractor {
	tree := newDir(nil, ".")
	tree.implied = true
	x := &extractor{
		root: root, dir: dir, shadow: -1, tree: tree, names: newNameTable(), record: &recorder{}, budget: b,
		files: [2]*node{{kind: kindOther}, {kind: kindOther, hides: true}},
	}
	x.dirs = newDirCache(root, x.budget)
	return x
}

// countEntry counts an entry against the layer's limits. length is the length of the entry's name.
func (x *extractor) countEntry(length int) error {
	if err := x.countInput(); err != nil {
		return err
	}
	if err := x.countHeaders(); err != nil {
		return err
	}
	return x.countName(length)
}

// countName counts one name, listed or implied.
func (x *extractor) countName(length int) error {
	x.budget.entries++
	x.bytesOfNames += length
	switch {
	case x.budget.entries > maxEntries:
		return invalid("more than %d entries", maxEntries)
	case x.bytesOfNames > maxNames:
		return invalid("more than %d bytes of names", maxNames)
	}
	if err := x.budget.keep(keptFile); err != nil {
		return err
	}
	return x.budget.spend(costEntry)
}

// countHeaders counts the headers of the current entry.
func (x *extractor) countHeaders() error {
	n := int64(len(x.header))
	x.budget.headers += n
	return x.budget.spend(n*costHeader + max(0, n-plainHeaders)*costRecord)
}

// countInput counts the bytes that were read since the last call.
func (x *extractor) countInput() error {
	return x.budget.read(x.record.total - x.budget.content)
}

// file returns the node of a file.
func (x *extractor) file(hides bool) *node {
	if hides {
		return x.files[1]
	}
	return x.files[0]
}

// entry extracts one entry and adds it to tar-split: first its headers, then its content, then
// itself. The content is added as raw bytes if the layer's directory does not hold it under the
// entry's name.
func (x *extractor) entry(h *tar.Header) error {
	x.header = x.record.take()
	x.pack.segment(x.header)
	if err := context.Cause(x.pack.ctx); err != nil {
		return err
	}
	if err := x.countEntry(len(h.Name)); err != nil {
		return err
	}
	// In tar-split, the entry follows its headers and its raw content.
	defer func() { x.names.note(h.Name, x.pack.count-1) }()
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

// extract returns the job that writes the file with the entry's content, or nil.
func (x *extractor) extract(h *tar.Header) (*fileJob, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return nil, err
	}
	if strings.Contains(name, whiteoutPrefix) {
		if aside, ok := aufsLinkName(name); ok && isFile(h) {
			return nil, x.keepAside(aside, h)
		}
		handled, err := x.special(name)
		if err != nil {
			return nil, err
		}
		if handled {
			return nil, x.keepContent(nil)
		}
	}
	m, err := newMeta(h)
	if err == nil {
		err = x.budget.spend(int64(len(m.attrs)) * costAttribute)
	}
	if err != nil {
		return nil, err
	}
	p, err := x.place(name)
	if err != nil {
		return nil, err
	}
	switch {
	case h.Typeflag == tar.TypeDir:
		return nil, x.directory(p, m)
	case isFile(h):
		return x.regular(p, m, h)
	}
	return nil, x.other(p, m, h)
}

func isFile(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return true
	}
	return false
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

// special handles the names that AUFS reserves.
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

// place resolves the parent of an entry and creates missing directories.
func (x *extractor) place(name string) (place, error) {
	if name == "." {
		return place{dir: x.tree, base: "."}, nil
	}
	dir, base := path.Split(name)
	if len(base) > maxName {
		return place{}, invalid("a component of the name has %d bytes, the limit is %d", len(base), maxName)
	}
	p, err := x.resolve(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return place{}, fmt.Errorf("find parent directory: %w", err)
	}
	p.base = strings.Clone(base) // a copy, so that the rest of the name can be freed
	return p, checkPath(p.dir, base)
}

// resolve finds a parent directory. It caches the result for the next entry, including the links
// that it followed.
func (x *extractor) resolve(dir string) (place, error) {
	switch {
	case dir == "":
		return place{dir: x.tree}, nil
	case x.parent.dir != nil && dir == x.parentName:
		return x.parent, nil
	}
	w := walker{root: x.tree, makeDir: x.imply, budget: x.budget}
	n, err := w.directory(dir)
	if err != nil {
		return place{}, err
	}
	x.parentName, x.parent = dir, place{dir: n, followed: w.followed}
	return x.parent, nil
}

// checkPath refuses a path that is too long after its symbolic links are resolved.
func checkPath(dir *node, base string) error {
	if n := dir.pathLength(base); n >= maxPath {
		return invalid("the path of the entry has %d bytes, the limit is %d", n, maxPath-1)
	}
	return nil
}

// imply creates a directory that the tar has not listed.
func (x *extractor) imply(parent *node, base string) (*node, error) {
	if len(base) > maxName {
		return nil, invalid("a component of the name has %d bytes, the limit is %d", len(base), maxName)
	}
	if err := errors.Join(checkPath(parent, base), x.countName(parent.pathLength(base))); err != nil {
		return nil, err
	}
	base = strings.Clone(base)
	n, err := x.mkdir(place{dir: parent, base: base})
	if err != nil {
		return nil, err
	}
	n.implied = true
	return n, nil
}

// mkdir creates a directory where none exists, and replaces any other file.
func (x *extractor) mkdir(p place) (*node, error) {
	if err := errors.Join(x.budget.keep(keptDir+len(p.base)), x.budget.spend(costDir)); err != nil {
		return nil, err
	}
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
	p.dir.add(p.base, n)
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

// regular submits a file to the writers.
func (x *extractor) regular(p place, m meta, h *tar.Header) (*fileJob, error) {
	if p.base == "." {
		return nil, invalid("the root of the layer can only be a directory")
	}
	job := &fileJob{base: p.base, path: h.Name, meta: m, size: h.Size, sparse: isSparse(h)}
	if job.sparse {
		if x.sparse += h.Size; x.sparse > maxSparse || x.sparse < 0 {
			return nil, invalid("sparse files have a total length of more than %d bytes", int64(maxSparse))
		}
	}
	if err := x.budget.keep(len(p.base)); err != nil {
		return nil, err
	}
	hides, err := x.vacate(p)
	if err != nil {
		return nil, err
	}
	if job.dir, err = x.dirs.get(p.dir); err != nil {
		return nil, err
	}
	p.dir.add(p.base, x.file(hides))
	x.size += h.Size
	// If the layer's directory does not hold the same bytes under this name, tar-split keeps them.
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

// keepContent records the content of the current entry as raw bytes and, with a job, also writes
// the file.
func (x *extractor) keepContent(job *fileJob) error {
	send := func(c chunk) error { //nolint:unparam // the other send returns errors
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
		if err := x.keepRaw(x.record.take()); err != nil {
			x.writers.recycle(c)
			return err
		}
		return send(c)
	})
}

// keepRaw adds content that only tar-split keeps.
func (x *extractor) keepRaw(raw []byte) error {
	x.pack.segment(raw)
	return x.budget.spend(int64(len(raw)) * costRaw)
}

// eachChunk reads the content of the current entry.
func (x *extractor) eachChunk(f func(chunk) error) error {
	for {
		buf := x.writers.buffer()
		n, err := io.ReadFull(x.tar, *buf)
		if err := x.countInput(); err != nil {
			x.writers.recycle(chunk{buf: buf})
			return err
		}
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

// atEnd distinguishes a short last chunk from a truncated tar.
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
	if err := x.budget.keep(keptLink + len(p.base) + len(target)); err != nil {
		return err
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
	p.dir.add(p.base, &node{kind: kindSymlink, target: strings.Clone(target), hides: hides})
	x.size += int64(len(target))
	return m.applyAt(d.fd, p.base, true)
}

// hardLink links to an earlier entry of the same tar. Like dockerd, it then sets the inode's owner,
// mode and times from the link's entry.
func (x *extractor) hardLink(p place, m meta, target string) error {
	if aside, ok := x.aside(target); ok {
		return x.linkAside(p, aside)
	}
	t, n, err := x.linkTarget(target)
	if err == nil {
		err = x.budget.keep(keptLink + len(p.base))
	}
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
		return linkError(target, err)
	}
	if n.kind == kindOther {
		p.dir.add(p.base, x.file(hides))
	} else {
		p.dir.add(p.base, &node{kind: n.kind, target: n.target, hides: hides})
	}
	return m.applyAt(to.fd, p.base, n.kind == kindSymlink)
}

// linkTarget finds the target of a hard link. It does not follow a symbolic link in the last
// component.
func (x *extractor) linkTarget(target string) (place, *node, error) {
	name, err := cleanName(target)
	if err != nil {
		return place{}, nil, err
	}
	dir, base := path.Split(name)
	w := walker{root: x.tree, budget: x.budget}
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
	if err := x.budget.keep(len(p.base)); err != nil {
		return err
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
	p.dir.add(p.base, x.file(hides))
	return m.applyAt(d.fd, p.base, false)
}

// whiteout hides a name of the layers below. A file of this layer with that name stays, whether it
// is before or after the whiteout in the tar.
func (x *extractor) whiteout(dir *node, base string) error {
	old := dir.children[base]
	switch {
	case old != nil && old.kind == kindDir:
		return x.opaque(old)
	case old != nil && old.kind == kindOther:
		dir.children[base] = x.file(true)
		return nil
	case old != nil:
		old.hides = true
		return nil
	}
	if err := errors.Join(checkPath(dir, base), x.budget.keep(keptFile+len(base))); err != nil {
		return err
	}
	d, err := x.dirs.get(dir)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Mknodat(d.fd, base, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	dir.add(strings.Clone(base), &node{kind: kindWhiteout, hides: true})
	return nil
}

// opaque hides the content of a directory in the layers below.
func (x *extractor) opaque(n *node) error {
	d, err := x.dirs.get(n)
	if err != nil {
		return err
	}
	defer d.release()
	if err := unix.Fsetxattr(d.fd, opaqueAttr, []byte{'y'}, 0); err != nil {
		return fmt.Errorf("make directory %q opaque: %w", n.name(), err)
	}
	n.hides = true
	return nil
}

// vacate removes the current file of a place. hides reports whether the tar has a whiteout for the
// name. Files that may have content move to the directory shadow, because tar-split still needs
// them.
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
	if err := errors.Join(x.budget.keep(keptMoved), x.budget.spend(costMove)); err != nil {
		return err
	}
	if err := x.openShadow(); err != nil {
		return err
	}
	r := replaced{dir: p.dir, base: p.base, position: x.pack.count}
	if err := unix.Renameat(dirfd, p.base, x.shadow, r.shadow(len(x.moved))); err != nil {
		return err
	}
	x.moved = append(x.moved, r)
	if old.kind != kindOther {
		x.parent.dir = nil // its path may contain the replaced file
	}
	if old.kind != kindDir {
		return nil
	}
	return x.dirs.dropBelow(old)
}

// openShadow creates the directory for files that are replaced or kept for hard links.
func (x *extractor) openShadow() error {
	if x.shadow >= 0 {
		return nil
	}
	name := filepath.Join(x.dir, shadowName)
	if err := os.Mkdir(name, 0o700); err != nil {
		return err
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	x.shadow = fd
	return nil
}

func (x *extractor) dropShadow(ctx context.Context) error {
	if x.shadow < 0 {
		return nil
	}
	return removeTree(ctx, unix.AT_FDCWD, filepath.Join(x.dir, shadowName))
}

func (x *extractor) close() {
	if x.shadow >= 0 {
		_ = unix.Close(x.shadow)
	}
	_ = unix.Close(x.root)
}
