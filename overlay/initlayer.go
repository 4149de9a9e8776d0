package overlay

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// initFile is a file that dockerd adds between an image and a container. It is a mount point that
// exists for every image.
type initFile struct {
	path   string
	dir    bool
	target string // target of a symbolic link
}

// initFiles returns the files of an init layer for an image with its /etc at etc.
func initFiles(etc string) []initFile {
	return []initFile{
		{path: "dev", dir: true},
		{path: "dev/pts", dir: true},
		{path: "dev/shm", dir: true},
		{path: "dev/console"},
		{path: "proc", dir: true},
		{path: "sys", dir: true},
		{path: ".dockerenv"},
		{path: etc, dir: true},
		{path: path.Join(etc, "resolv.conf")},
		{path: path.Join(etc, "hosts")},
		{path: path.Join(etc, "hostname")},
		{path: path.Join(etc, "mtab"), target: "/proc/mounts"},
	}
}

// makeInit creates the directory of an init layer above the directories below (top first). dockerd
// mounts the layer and creates the files in the mount; makeInit has the same result without a
// mount. It keeps directories of the image and replaces everything else of the same name. Unlike
// dockerd, it keeps /etc if that is a symbolic link to a directory, and creates the files of /etc
// there.
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
	etc, err := v.initEtc()
	if err != nil {
		return fmt.Errorf("find etc: %w", err)
	}
	above := parents(etc)
	for _, dir := range above {
		if err := v.makeInitFile(root, initFile{path: dir, dir: true}); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	for _, f := range initFiles(etc) {
		if err := v.makeInitFile(root, f); err != nil {
			return fmt.Errorf("make %s: %w", f.path, err)
		}
	}
	// Last, because creating files in a directory changes its times.
	slices.Reverse(above)
	for _, dir := range slices.Concat([]string{etc}, above, []string{"dev/shm", "dev/pts", "dev", "proc", "sys", "."}) {
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

// describe copies the metadata of the directory p from the view to the directory p below root. It
// does nothing if the view has no such directory.
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
	return copyDirectory(f.root, p, to)
}

// initEtc returns the directory that the image's /etc is or links to. It returns "etc" if there is
// no such directory, or if a mount of every container hides it.
func (v *view) initEtc() (string, error) {
	dir, err := v.resolveDir("etc")
	if err != nil {
		return "", err
	}
	top, _, _ := strings.Cut(dir, "/")
	if dir == "" || slices.Contains([]string{"dev", "proc", "sys"}, top) {
		return "etc", nil
	}
	return dir, nil
}

// parents returns the directories above a relative path, the highest first.
func parents(p string) []string {
	var dirs []string
	for p = path.Dir(p); p != "."; p = path.Dir(p) {
		dirs = append(dirs, p)
	}
	slices.Reverse(dirs)
	return dirs
}

func (v *view) makeInitFile(root int, f initFile) error {
	if f.path == "." { // /etc links to the root
		return nil
	}
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
		fd, err := createFile(dir, base, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return unix.Fchmodat(dir, base, 0o755, 0)
}
