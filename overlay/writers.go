package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	writerCount = 2       // per Apply; more do not help, because the kernel serialises file creation in a directory
	jobQueue    = 8       // files waiting for a writer
	chunkQueue  = 2       // buffers of a large file waiting for its writer
	page        = 4 << 10 // unit in which zeros are detected
	sparseRun   = page    // zeros that become a hole in a sparse file of the tar
	plainRun    = 64 << 10
)

// fileJob is one file to be written. chunk has the content of a small file; chunks receives the
// content of a large one.
type fileJob struct {
	dir    *dirFD
	base   string
	path   string // for errors
	meta   meta
	size   int64
	sparse bool
	chunk  chunk
	chunks chan chunk

	done chan struct{} // closed when sum is valid or the job failed
	sum  []byte        // CRC-64/ISO of the content, as tar-split keeps it
}

// chunk is a piece of content in a pooled buffer.
type chunk struct {
	buf *[]byte
	n   int
	at  int64 // offset in a sparse file
}

// writers is a set of goroutines that write files.
type writers struct {
	ctx     context.Context // of one Apply call, which this value does not outlive
	fail    context.CancelCauseFunc
	jobs    chan *fileJob
	buffers *sync.Pool
	pending sync.WaitGroup // jobs
	running sync.WaitGroup // goroutines
}

func startWriters(ctx context.Context, fail context.CancelCauseFunc, buffers *sync.Pool) *writers {
	w := &writers{ctx: ctx, fail: fail, jobs: make(chan *fileJob, jobQueue), buffers: buffers}
	for range writerCount {
		w.running.Go(w.run)
	}
	return w
}

func (w *writers) run() {
	for j := range w.jobs {
		if w.ctx.Err() == nil {
			if err := w.write(j); err != nil {
				w.fail(fmt.Errorf("entry %q: %w", j.path, err))
			}
		}
		w.recycle(j.chunk)
		j.dir.release()
		close(j.done)
		w.pending.Done()
	}
}

// submit queues a job. The writers release its reference to the directory.
func (w *writers) submit(j *fileJob) {
	j.done = make(chan struct{})
	w.pending.Add(1)
	w.jobs <- j
}

// settle waits until every submitted file is written.
func (w *writers) settle() error {
	w.pending.Wait()
	return context.Cause(w.ctx)
}

// close waits for the goroutines to end.
func (w *writers) close() {
	close(w.jobs)
	w.running.Wait()
}

func (w *writers) buffer() *[]byte { return w.buffers.Get().(*[]byte) }

func (w *writers) recycle(c chunk) {
	if c.buf != nil {
		w.buffers.Put(c.buf)
	}
}

// write creates one file. It is an error if the name exists.
func (w *writers) write(j *fileJob) (err error) {
	fd, err := createFile(j.dir.fd, j.base, j.meta.mode)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer func() {
		if cerr := unix.Close(fd); err == nil && cerr != nil {
			err = fmt.Errorf("close file: %w", cerr)
		}
	}()
	if err := w.content(fd, j); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	if err := j.meta.applyFd(fd); err != nil {
		return err
	}
	return futimens(fd, j.meta.times.access, j.meta.times.modify)
}

// createFile creates a file for writing. The umask and default access control lists may change its
// mode.
func createFile(dirfd int, base string, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (w *writers) content(fd int, j *fileJob) error {
	out := fileWriter{fd: fd, run: plainRun}
	if j.sparse {
		out.run = sparseRun
	}
	var crc uint64
	if j.chunks == nil {
		data := j.chunk.bytes()
		crc = updateCRC(crc, data)
		if err := out.write(data); err != nil {
			return err
		}
	} else if err := w.stream(&out, j, &crc); err != nil {
		return err
	}
	j.sum = binary.BigEndian.AppendUint64(nil, crc)
	if out.end == j.size {
		return nil
	}
	return unix.Ftruncate(fd, j.size)
}

// stream writes the chunks of a large file. A sparse file needs no checksum, because tar-split
// keeps its content.
func (w *writers) stream(out *fileWriter, j *fileJob, crc *uint64) error {
	for {
		select {
		case c, ok := <-j.chunks:
			if !ok {
				return nil
			}
			if j.sparse {
				out.pos = c.at
			} else {
				*crc = updateCRC(*crc, c.bytes())
			}
			err := out.write(c.bytes())
			w.recycle(c)
			if err != nil {
				return err
			}
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
}

func (c chunk) bytes() []byte {
	if c.buf == nil {
		return nil
	}
	return (*c.buf)[:c.n]
}

// fileWriter writes a file from its start and leaves holes for long runs of zeros.
type fileWriter struct {
	fd  int
	run int   // minimum length of a hole in bytes, a multiple of page
	pos int64 // offset of the next write
	end int64 // end of the written data; a hole after it needs a truncate
}

func (f *fileWriter) write(data []byte) error {
	start := 0 // start of the data that must be written
	for at := 0; at < len(data); {
		zeros := zeroPages(data[at:])
		if zeros < f.run {
			at += max(zeros, page)
			continue
		}
		if err := f.flush(data[start:at], start); err != nil {
			return err
		}
		at += zeros
		start = at
	}
	if start < len(data) {
		if err := f.flush(data[start:], start); err != nil {
			return err
		}
	}
	f.pos += int64(len(data))
	return nil
}

// flush writes data, which is at offset in the current buffer.
func (f *fileWriter) flush(data []byte, offset int) error {
	at := f.pos + int64(offset)
	for len(data) > 0 {
		n, err := unix.Pwrite(f.fd, data, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, at = data[n:], at+int64(n)
		f.end = at
	}
	return nil
}

// zeroPages returns how many bytes at the start of data are whole pages of zeros.
func zeroPages(data []byte) int {
	n := 0
	for len(data)-n >= page && isZero(data[n:n+page]) {
		n += page
	}
	return n
}

func isZero(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
