package overlay

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// aufsLinks is the directory in which AUFS keeps files with several names. Layers from dockerd's
// AUFS driver have each such file as aufsLinks/NUMBER, and its names as hard links to it.
const aufsLinks = ".wh..wh.plnk"

// keptAside is the memory of an aufsFile, in bytes.
const keptAside = 256

// aufsFile is a file of aufsLinks. It stays in the directory shadow until the layer is complete.
type aufsFile struct {
	name   string // in the directory shadow
	size   int64
	linked bool
}

// aufsLinkName returns the name of a file in aufsLinks.
func aufsLinkName(clean string) (name string, ok bool) {
	name, ok = strings.CutPrefix(clean, aufsLinks+"/")
	return name, ok && name != "" && !strings.Contains(name, "/")
}

// keepAside writes a file of aufsLinks to the directory shadow. tar-split keeps its content,
// because the layer's directory does not have a file with this name.
func (x *extractor) keepAside(name string, h *tar.Header) error {
	if len(name) > maxName {
		return invalid("a component of the name has %d bytes, the limit is %d", len(name), maxName)
	}
	m, err := newMeta(h)
	if err != nil {
		return err
	}
	if isSparse(h) {
		return invalid("a sparse file below %s", aufsLinks)
	}
	if err := errors.Join(x.budget.keep(keptAside+len(name)), x.budget.spend(costMove)); err != nil {
		return err
	}
	if err := x.openShadow(); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(x.shadow), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", shadowName, err)
	}
	f := &aufsFile{name: fmt.Sprintf("aufs-%d", x.asides), size: h.Size}
	x.asides++
	job := &fileJob{dir: &dirFD{fd: fd}, base: f.name, path: h.Name, meta: m, size: h.Size}
	job.dir.refs.Store(1)
	if x.aufs == nil {
		x.aufs = map[string]*aufsFile{}
	}
	x.aufs[strings.Clone(name)] = f
	return x.keepContent(job)
}

// aside returns the file of aufsLinks that a hard link names.
func (x *extractor) aside(target string) (*aufsFile, bool) {
	name, ok := aufsLinkName(strings.TrimPrefix(path.Clean(target), "/"))
	if !ok {
		return nil, false
	}
	f, ok := x.aufs[name]
	return f, ok
}

// linkAside links a file of aufsLinks into the layer. Like dockerd, it keeps the owner, mode and
// times from the file's own entry.
func (x *extractor) linkAside(p place, f *aufsFile) error {
	if err := x.budget.keep(len(p.base)); err != nil {
		return err
	}
	hides, err := x.vacate(p)
	if err != nil {
		return err
	}
	if err := x.writers.settle(); err != nil {
		return err
	}
	to, err := x.dirs.get(p.dir)
	if err != nil {
		return err
	}
	defer to.release()
	if err := unix.Linkat(x.shadow, f.name, to.fd, p.base, 0); err != nil {
		return linkError(f.name, err)
	}
	if !f.linked {
		f.linked = true
		x.size += f.size
	}
	p.dir.add(p.base, x.file(hides))
	return nil
}
