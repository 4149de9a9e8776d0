package overlay

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// aufsLinks is where AUFS keeps the inodes of files that have several names. The layers that
// dockerd made with it hold each such file as aufsLinks/NUMBER, and its names as hard links to
// that.
const aufsLinks = ".wh..wh.plnk"

// keptAside is what an aufsFile takes, in bytes.
const keptAside = 256

// aufsFile is a file of AUFS in the directory shadow, where it stays until the layer is complete.
type aufsFile struct {
	name   string // in the directory shadow
	size   int64
	linked bool
}

// aufsLinkName returns the name of a file that AUFS keeps for hard links.
func aufsLinkName(clean string) (name string, ok bool) {
	name, ok = strings.CutPrefix(clean, aufsLinks+"/")
	return name, ok && name != "" && !strings.Contains(name, "/")
}

// keepAside writes a file of AUFS to the directory shadow. Its content is part of tar-split,
// because the layer's directory does not have it under this name.
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

// aside returns the file of AUFS that a hard link names.
func (x *extractor) aside(target string) (*aufsFile, bool) {
	name, ok := aufsLinkName(strings.TrimPrefix(path.Clean(target), "/"))
	if !ok {
		return nil, false
	}
	f, ok := x.aufs[name]
	return f, ok
}

// linkAside gives a file of AUFS a name in the layer. Like dockerd, it leaves the file the owner,
// mode and times of its own entry.
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
