package server

import (
	"bytes"
	"fmt"
	"log"

	"github.com/micarun/mica/internal/podlog"
	"golang.org/x/sys/unix"
)

// logFile is a container's CRI log. Only the pump uses it.
type logFile struct {
	id   string
	at   podlog.File
	fd   int
	size int64
	file uint64
	lost int64 // bytes dropped since writing began to fail
}

func openLog(id string, at podlog.File) (*logFile, error) {
	file, err := at.Append()
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer func() { _ = file.Close() }()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", at.Path, err)
	}
	return useLog(id, at, fd)
}

// useLog takes ownership of an open descriptor.
func useLog(id string, at podlog.File, fd int) (*logFile, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("stat log %s: %w", at.Path, err)
	}
	return &logFile{id: id, at: at, fd: fd, size: st.Size, file: st.Ino}, nil
}

func (l *logFile) close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}

// rewind truncates the log to size bytes if file is its inode.
func (l *logFile) rewind(size int64, file uint64) error {
	if l == nil || file != l.file || l.size <= size {
		return nil
	}
	if err := unix.Ftruncate(l.fd, size); err != nil {
		return fmt.Errorf("cut log %s back to %d bytes: %w", l.at.Path, size, err)
	}
	l.size = size
	return nil
}

// write appends whole lines. Lines that cannot be written are dropped and counted, so that neither
// a full disk nor a failing one stops a container. The first failure and the recovery are logged.
func (l *logFile) write(lines []byte) {
	for len(lines) > 0 {
		n, err := unix.Write(l.fd, lines)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == len(lines) {
			l.size += int64(n)
			l.recovered()
			return
		}
		n = l.mend(lines, max(n, 0))
		lines = lines[n:]
		if err == nil && n == 0 {
			err = unix.ENOSPC // there is room for part of a line only
		}
		if err != nil {
			l.failed(err, len(lines))
			return
		}
	}
}

// mend removes the partial line at the end of the n bytes that were written. It returns the number
// of bytes that remain.
func (l *logFile) mend(lines []byte, n int) int {
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	if whole < n {
		if err := unix.Ftruncate(l.fd, l.size+int64(whole)); err != nil {
			whole = n // the partial line remains, and readers see one malformed line
		}
	}
	l.size += int64(whole)
	return whole
}

func (l *logFile) failed(err error, bytes int) {
	if l.lost == 0 {
		log.Printf("container %s: write log %s: %v; dropping output until it works again", l.id, l.at.Path, err)
	}
	l.lost += int64(bytes)
}

func (l *logFile) recovered() {
	if l.lost > 0 {
		log.Printf("container %s: log %s can be written again, %d bytes were dropped", l.id, l.at.Path, l.lost)
		l.lost = 0
	}
}
