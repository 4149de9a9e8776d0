// Package podlog opens the log files of containers.
//
// The kubelet chooses a pod's log directory, so its path is trusted and symbolic links in it are
// followed. The content of the directory is not trusted, because a pod may mount it and create
// anything in it. Below the directory no link is followed, and only a regular file with a single
// hard link is opened.
package podlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	fileMode = 0o640
	dirMode  = 0o755
	// appendTries limits Append's retries while a file keeps disappearing. A log rotation removes
	// it once; only a hostile pod does so repeatedly.
	appendTries = 8
)

// File is a container's log file, which may not exist yet. Its methods may be called concurrently.
//
// Errors are *os.PathError with the error of the system call: unix.ELOOP for a symbolic link below
// Dir. A Path that is not below Dir, a file that is not regular and a file with several hard links
// are plain errors.
type File struct {
	// Dir is the trusted directory; "" means the parent of Path.
	Dir string
	// Path is the absolute path of the file, below Dir.
	Path string
}

// MakeDir creates the file's parent directories with mode 0755.
func (f File) MakeDir() error {
	dir, name, err := f.split()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	at, err := openDir(dir)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	below := ""
	for part := range strings.SplitSeq(filepath.Dir(name), "/") {
		if part == "." {
			continue
		}
		if err := makeBeneath(at, below, part); err != nil {
			return &os.PathError{Op: "make directory", Path: filepath.Join(dir, below, part), Err: err}
		}
		below = filepath.Join(below, part)
	}
	return nil
}

// Append opens the file for appending and creates it with mode 0640 if it is missing. The
// descriptor is non-blocking.
func (f File) Append() (*os.File, error) {
	var log *os.File
	var err error
	for range appendTries {
		if log, err = f.Create(); !errors.Is(err, os.ErrExist) {
			return log, err
		}
		if log, err = f.existing(unix.O_WRONLY | unix.O_APPEND); !errors.Is(err, os.ErrNotExist) {
			return log, err
		}
	}
	return nil, err
}

// Create creates the file with mode 0640 and opens it for appending. If it exists, the error is
// os.ErrExist.
func (f File) Create() (*os.File, error) {
	return f.open(unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_EXCL)
}

// Read opens the file for reading. If it is missing, the error is os.ErrNotExist.
func (f File) Read() (*os.File, error) { return f.existing(unix.O_RDONLY) }

// existing checks the file before it opens it, because opening a device node or a named pipe has
// side effects.
func (f File) existing(flags int) (*os.File, error) {
	found, err := f.open(unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = found.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(found.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("open %s: not a regular file", f.Path)
	case st.Nlink > 1:
		return nil, fmt.Errorf("open %s: file has %d hard links, one may be another pod's or the host's", f.Path, st.Nlink)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", found.Fd()), flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Path, Err: err}
	}
	return os.NewFile(uintptr(fd), f.Path), nil
}

// open opens the file, whatever its type.
func (f File) open(flags int) (*os.File, error) {
	dir, name, err := f.split()
	if err != nil {
		return nil, err
	}
	at, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(at) }()
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NOCTTY | unix.O_NONBLOCK
	}
	fd, err := openBeneath(at, name, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Path, Err: err}
	}
	return os.NewFile(uintptr(fd), f.Path), nil
}

// split returns the trusted directory and the name of the file below it.
func (f File) split() (dir, name string, err error) {
	dir = f.Dir
	if dir == "" {
		dir = filepath.Dir(f.Path)
	}
	name, err = filepath.Rel(dir, f.Path)
	if err != nil || !filepath.IsLocal(name) || name == "." {
		return "", "", fmt.Errorf("log file %q is not below the log directory %q", f.Path, dir)
	}
	return dir, name, nil
}

func openDir(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// openBeneath opens name below the directory at without following links.
func openBeneath(at int, name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = fileMode
	}
	for {
		fd, err := unix.Openat2(at, name, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// makeBeneath creates the directory name in the directory below, relative to at.
func makeBeneath(at int, below, name string) error {
	parent := at
	if below != "" {
		fd, err := openBeneath(at, below, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		parent = fd
	}
	if err := unix.Mkdirat(parent, name, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
