package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

// reader reads the small files of a cgroup's directories into one reused buffer. A missing file
// reads as empty. err holds the first other error. A reader must not be used concurrently.
type reader struct {
	dir string
	buf []byte
	err error
}

// open selects another directory. It returns false if the controller is absent.
func (r *reader) open(dir string) bool {
	r.dir = dir
	return dir != ""
}

// read returns the text of a file, valid until the next read, and nil if the file does not exist.
func (r *reader) read(name string) []byte {
	if r.err != nil {
		return nil
	}
	path := r.dir + "/" + name
	text, err := r.readFile(path)
	if err != nil {
		if !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) { // EOPNOTSUPP: PSI is switched off
			r.err = &fs.PathError{Op: "read", Path: path, Err: err}
		}
		return nil
	}
	return text
}

func (r *reader) readFile(path string) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if r.buf == nil {
		r.buf = make([]byte, 8192)
	}
	for n := 0; ; {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		got, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, r.buf[n:]) })
		if err != nil {
			return nil, err
		}
		if got == 0 {
			return r.buf[:n], nil
		}
		n += got
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// number reads a file with one number. "max" and "-1" read as MaxUint64. ok is false if the file
// does not exist.
func (r *reader) number(name string) (v uint64, ok bool) {
	text := bytes.TrimSpace(r.read(name))
	if len(text) == 0 {
		return 0, false
	}
	return r.parse(name, text), r.err == nil
}

// limit is number with 0 for "no limit". v1 represents "no limit" as -1 or as the highest multiple
// of the page size in an int64.
func (r *reader) limit(name string) (v uint64, ok bool) {
	v, ok = r.number(name)
	if v >= math.MaxInt64-math.MaxUint16 {
		return 0, ok
	}
	return v, ok
}

func (r *reader) parse(name string, text []byte) uint64 {
	if string(text) == "max" || string(text) == "-1" {
		return math.MaxUint64
	}
	v, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse %s/%s: %w", r.dir, name, err)
	}
	return v
}

// keyed calls f for every "key value" line. A file that does not exist has none.
func (r *reader) keyed(name string, f func(key []byte, v uint64)) {
	for line := range bytes.Lines(r.read(name)) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if ok {
			f(key, r.parse(name, value))
		}
	}
}

// pressure reads a PSI file and returns nil if there is none.
func (r *reader) pressure(name string) *Pressure {
	text := r.read(name)
	if len(text) == 0 {
		return nil
	}
	p := &Pressure{}
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		into := &p.Some
		if string(fields[0]) == "full" {
			into = &p.Full
		}
		for _, field := range fields[1:] {
			r.pressureField(name, field, into)
		}
	}
	return p
}

func (r *reader) pressureField(name string, field []byte, into *PressureLine) {
	key, value, _ := bytes.Cut(field, []byte("="))
	var err error
	switch string(key) {
	case "avg10":
		into.Avg10, err = strconv.ParseFloat(string(value), 64)
	case "avg60":
		into.Avg60, err = strconv.ParseFloat(string(value), 64)
	case "avg300":
		into.Avg300, err = strconv.ParseFloat(string(value), 64)
	case "total":
		into.Total, err = strconv.ParseUint(string(value), 10, 64)
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("parse %s/%s: %w", r.dir, name, err)
	}
}
