package overlay

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// initFile is what dockerd puts between an image and a container, so that files
// can be mounted over it whatever the image holds.
type initFile struct {
	path   string
	dir    bool
	target string // of a symbolic link
}

func initFiles() []initFile {
	return []initFile{
		{path: "dev", dir: true},
		{path: "dev/pts", dir: true},
		{path: "dev/shm", dir: true},
		{path: "dev/console"},
		{path: "proc", dir: true},
		{path: "sys", dir: true},
		{path: ".dockerenv"},
		{path: "etc", dir: true},
		{path: "etc/resolv.conf"},
		{path: "etc/hosts"},
		{path: "etc/hostname"},
		{path: "etc/mtab", target: "/proc/mounts"},
	}
}

// makeInit makes the directory of an init layer on the directories below (top
// first). The result is what dockerd gets by mounting the layer and making the
// files in there: a directory of the image is kept as it is, everything else of
// the same name is replaced.
func (s *Store) makeInit(id string, below []string) error {
	if err := os.Mkdir(s.paths.dir(id), 0o710); err != nil {
		return err
	}
	if err := makeDir(s.paths.diff(id), 0o755); err != nil {
		return err
	}
	v, err := s.newView(below)
	if err != nil {
		return err
	}
	defer v.close()
	root, err := unix.Open(s.paths.diff(id), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	for _, f := range initFiles() {
		if err := v.makeInitFile(root, f); err != nil {
			return fmt.Errorf("make %s: %w", f.path, err)
		}
	}
	// Last, because they would get new times by what is made in them.
	for _, dir := range []string{"etc", "dev/shm", "dev/pts", "dev", "proc", "sys", "."} {
		if err := v.describe(dir, root); err != nil {
			return fmt.Errorf("describe %s: %w", dir, err)
		}
	}
	parent := ""
	if len(below) > 0 {
		parent = below[0]
	}
	return s.describe(id, parent)
}

// describe gives the directory p below root what it has in the view, if it is there.
func (v *view) describe(p string, root int) error {
	f, err := v.lookup(p)
	if err != nil || f == nil || !f.isDir() {
		return err
	}
	to, err := openBeneath(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	return copyDirectory(f, p, to)
}

func (v *view) makeInitFile(root int, f initFile) error {
	old, err := v.lookup(f.path)
	if err != nil {
		return err
	}
	if old != nil && old.isDir() && !f.dir {
		return nil // the image has a directory there, and keeps it
	}
	dir, err := openBeneath(root, path.Dir(f.path), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	base := path.Base(f.path)
	switch {
	case f.target != "":
		return unix.Symlinkat(f.target, dir, base)
	case f.dir:
		if err := unix.Mkdirat(dir, base, 0o755); err != nil {
			return err
		}
	default:
		fd, err := createFile(dir, base)
		if err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return unix.Fchmodat(dir, base, 0o755, 0)
}
