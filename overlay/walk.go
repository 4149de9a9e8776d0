package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	maxOpenRungs = 16   // maximum open descriptors of one ladder
	walkBatch    = 1024 // maximum names per read
)

// errMoved means that the parent of a directory has changed during a walk.
var errMoved = errors.New("directory was moved meanwhile")

// ladder is a position in a directory tree of any depth. It keeps only few descriptors open: the
// top directory and the deepest ones. It reopens a closed directory as the parent of the one below.
// It uses no paths, so PATH_MAX is no limit either. One goroutine may use it at a time.
type ladder struct{ rungs []rung }

type rung struct {
	fd            int // −1 when closed
	device, inode uint64
}

// newLadder starts at an open directory and duplicates its descriptor.
func newLadder(fd int) (*ladder, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	l := &ladder{}
	return l, l.push(own)
}

func (l *ladder) fd() int { return l.rungs[len(l.rungs)-1].fd }

func (l *ladder) push(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	l.rungs = append(l.rungs, rung{fd, st.Dev, st.Ino})
	if far := len(l.rungs) - maxOpenRungs; far > 0 && l.rungs[far].fd >= 0 {
		_ = unix.Close(l.rungs[far].fd)
		l.rungs[far].fd = -1
	}
	return nil
}

// down opens a directory in the current one. It follows no link and does not leave the mount.
func (l *ladder) down(name string) error {
	fd, err := openBeneath(l.fd(), name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return l.push(fd)
}

// up returns to the parent directory. After errMoved, the ladder is at the nearest ancestor that is
// still open.
func (l *ladder) up() error {
	last := len(l.rungs) - 1
	below := l.rungs[last].fd
	defer func() { _ = unix.Close(below) }()
	l.rungs = l.rungs[:last]
	to := &l.rungs[last-1]
	if to.fd >= 0 {
		return nil
	}
	fd, err := unix.Openat(below, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && (st.Dev != to.device || st.Ino != to.inode) {
			err = errMoved
		}
		if err == nil {
			to.fd = fd
			return nil
		}
		_ = unix.Close(fd)
	}
	for l.fd() < 0 {
		l.rungs = l.rungs[:len(l.rungs)-1]
	}
	return fmt.Errorf("%w: %w", errMoved, err)
}

func (l *ladder) close() {
	for _, r := range l.rungs {
		if r.fd >= 0 {
			_ = unix.Close(r.fd)
		}
	}
	l.rungs = nil
}

// walk has the callbacks and options of walkTree.
type walk struct {
	// names gets the names in a directory, in batches, and returns the directories to enter.
	names func(dirfd int, names []string) (dirs []string, err error)
	// enter is called in a directory before its names. It may be nil.
	enter func(dirfd int, name string) error
	// leave is called in the parent after a directory. It may be nil.
	leave func(dirfd int, name string) error
	// all passes all names of a directory in one batch.
	all bool
	// removes means that names and leave delete their files: each directory is read until it is
	// empty.
	removes bool
	// lenient continues if other processes change the tree, and skips removed files.
	lenient bool

	buf []byte
}

// level is a directory that the walk has entered.
type level struct {
	name string
	dirs []string // of the last batch, not entered yet
	at   int64    // offset of the next batch
	end  bool
}

// walkTree walks the tree of an open directory, depth first, with a limited number of descriptors.
// enter and leave are not called for the top directory itself.
func walkTree(ctx context.Context, fd int, w walk) error {
	dirs, err := newLadder(fd)
	if err != nil {
		return err
	}
	defer dirs.close()
	w.buf = make([]byte, 32<<10)
	levels := []level{{}}
	for len(levels) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		here := &levels[len(levels)-1]
		switch {
		case len(here.dirs) > 0:
			name := here.dirs[0]
			here.dirs = here.dirs[1:]
			entered, err := w.goDown(dirs, name)
			if err != nil {
				return err
			}
			if entered {
				levels = append(levels, level{name: name})
			}
		case !here.end:
			if err := w.read(dirs.fd(), here); err != nil {
				return err
			}
		case len(levels) == 1:
			return nil
		default:
			if levels, err = w.goUp(dirs, levels); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) goDown(dirs *ladder, name string) (entered bool, err error) {
	err = dirs.down(name)
	if w.lenient && isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	if w.enter == nil {
		return true, nil
	}
	return true, w.enter(dirs.fd(), name)
}

func (w *walk) goUp(dirs *ladder, levels []level) ([]level, error) {
	name := levels[len(levels)-1].name
	err := dirs.up()
	levels = levels[:len(dirs.rungs)]
	switch {
	case errors.Is(err, errMoved) && w.lenient:
		return levels, nil
	case err != nil:
		return levels, fmt.Errorf("leave directory %q: %w", name, err)
	case w.leave == nil:
		return levels, nil
	}
	return levels, w.leave(dirs.fd(), name)
}

// read passes the next names of a directory to names.
func (w *walk) read(fd int, here *level) error {
	names, next, err := w.batch(fd, here.at)
	if err != nil {
		return err
	}
	here.at, here.end = next, w.all || len(names) == 0
	if w.removes {
		here.at = 0
	}
	if len(names) == 0 && !w.all {
		return nil
	}
	here.dirs, err = w.names(fd, names)
	return err
}

// batch reads names of an open directory, starting at an offset.
func (w *walk) batch(fd int, from int64) (names []string, next int64, err error) {
	if _, err := unix.Seek(fd, from, io.SeekStart); err != nil {
		return nil, 0, os.NewSyscallError("seek", err)
	}
	next = from
	for w.all || len(names) < walkBatch {
		n, err := unix.Getdents(fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, 0, os.NewSyscallError("getdents", err)
		}
		if n == 0 {
			break
		}
		next = direntOffset(w.buf[:n])
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names)
	}
	return names, next, nil
}

// direntOffset returns the directory offset after the last entry in a buffer of struct
// linux_dirent64.
func direntOffset(buf []byte) (offset int64) {
	const offsetAt, lengthAt, headerSize = 8, 16, 19
	for len(buf) >= headerSize {
		offset = int64(binary.NativeEndian.Uint64(buf[offsetAt:]))
		length := int(binary.NativeEndian.Uint16(buf[lengthAt:]))
		buf = buf[min(max(length, headerSize), len(buf)):]
	}
	return offset
}

// isGone reports whether another process has removed or replaced the file.
func isGone(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
