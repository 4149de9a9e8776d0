package server

import (
	"errors"
	"log"
	"time"

	"golang.org/x/sys/unix"
)

// stream is one output of a container on its way to the log. Its pending memfd holds the bytes
// [done, end) that have left the container's pipe and are not in the log yet. Usually there are
// none, or the beginning of a line.
type stream struct {
	io       *stdio
	index    int    // 0 stdout or terminal, 1 stderr
	fd       int    // the container's output; -1 after its end
	pending  int    // memfd
	end      int64  // size of pending
	done     int64  // start of the part that is not logged
	freed    int64  // pending holds no memory below this
	seen     uint64 // bytes read so far, to detect silence
	readOnly bool   // splice is not possible: a terminal
}

var streamNames = [2]string{"stdout", "stderr"}

func newPending() (int, error) {
	return unix.MemfdCreate("mica-pending", unix.MFD_CLOEXEC)
}

// ready moves one batch.
func (s *stream) ready() {
	before := s.end
	over := s.fill()
	if s.end > before || over {
		s.advance(before, over)
	}
	if over {
		s.finish()
	}
}

// fill appends up to one batch of the container's output to pending. It reports whether the output
// has ended.
func (s *stream) fill() (over bool) {
	n, err := s.move()
	switch {
	case n > 0:
		s.end += int64(n)
		s.seen += uint64(n)
		return false
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return false
	case err != nil && !errors.Is(err, unix.EIO): // a terminal ends with EIO
		log.Printf("container %s: read %s: %v", s.io.id, streamNames[s.index], err)
	}
	return true
}

func (s *stream) move() (int, error) {
	if !s.readOnly {
		at := s.end
		n, err := unix.Splice(s.fd, nil, s.pending, &at, batch, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINVAL {
			return int(n), err
		}
		s.readOnly = true
	}
	in := s.io.pump.in[:batch]
	n, err := unix.Read(s.fd, in)
	if n <= 0 {
		return n, err
	}
	return unix.Pwrite(s.pending, in[:n], s.end)
}

// advance writes the whole lines in pending to the log, and the part from fresh on to the attached
// clients. With over set, the rest counts as a line.
func (s *stream) advance(fresh int64, over bool) {
	p := s.io.pump
	for s.done < s.end {
		in := p.in[:min(int64(len(p.in)), s.end-s.done)]
		n, err := unix.Pread(s.pending, in, s.done)
		if err != nil || n <= 0 {
			log.Printf("container %s: read pending output: %v", s.io.id, err)
			s.done = s.end
			break
		}
		in = in[:n]
		if skip := max(fresh-s.done, 0); skip < int64(n) {
			s.io.feed(s.index, in[skip:])
			fresh = s.done + int64(n)
		}
		used := s.record(in, over && s.done+int64(n) == s.end)
		s.done += int64(used)
		s.io.commit()
		if used == 0 {
			break
		}
	}
	s.trim()
}

// record appends the lines of data to the log and returns how many bytes of data they contain.
func (s *stream) record(data []byte, last bool) (used int) {
	if s.io.log == nil {
		return len(data)
	}
	p := s.io.pump
	var space [headSize]byte
	h := head(space[:0], time.Now(), streamNames[s.index])
	for {
		out, n, full := frame(p.out[:0], h, data[used:], last)
		used += n
		if len(out) > 0 {
			s.io.log.write(out)
		}
		if !full {
			return used
		}
	}
}

// trim frees the memory of logged output: at once if nothing is pending, otherwise in steps of a
// MiB.
func (s *stream) trim() {
	const page = 4096
	upTo := s.done &^ (page - 1)
	if s.done == s.end {
		upTo = (s.end + page - 1) &^ (page - 1)
	} else if upTo-s.freed < 1<<20 {
		return
	}
	if upTo <= s.freed {
		return
	}
	err := unix.Fallocate(s.pending, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.freed, upTo-s.freed)
	if err == nil {
		s.freed = s.done &^ (page - 1)
	}
}

// finish closes the keeper's end.
func (s *stream) finish() {
	if s.fd < 0 {
		return
	}
	if s.fd == s.io.terminal {
		s.io.pump.onRead(s.fd, nil) // stays open for resize until Delete
	} else {
		s.io.pump.drop(s.fd)
	}
	s.fd = -1
	s.io.ended(s.index)
}

// waiting returns how many bytes the container has written that were not read.
func (s *stream) waiting() int {
	if s.fd < 0 {
		return 0
	}
	n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}
