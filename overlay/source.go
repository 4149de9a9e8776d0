package overlay

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	bufferSize = 256 << 10
	readAhead  = 4 // buffers between the input and the parser
)

// block is one piece of the input. The parser and the hasher read it concurrently; the last of them
// returns it to the pool.
type block struct {
	buf   *[]byte
	n     int
	users atomic.Int32
}

// source reads the input ahead of the parser and computes its digest, each in its own goroutine.
// One goroutine at a time may call Read.
type source struct {
	ctx    context.Context // of one Apply call, which this value does not outlive
	free   chan *block
	parse  chan *block
	hash   chan *block
	err    error // why the input ended; valid when parse is closed
	hasher hash.Hash

	current *block
	rest    []byte
}

func newSource(ctx context.Context, buffers func() *[]byte) *source {
	s := &source{
		ctx: ctx, hasher: digest.SHA256.Hash(),
		free: make(chan *block, readAhead), parse: make(chan *block, readAhead), hash: make(chan *block, readAhead),
	}
	for range readAhead {
		s.free <- &block{buf: buffers()}
	}
	return s
}

// pump reads the input into blocks until the input or the context ends.
func (s *source) pump(in io.Reader) {
	defer close(s.hash)
	defer close(s.parse)
	for {
		var b *block
		select {
		case b = <-s.free:
		case <-s.ctx.Done():
			s.err = context.Cause(s.ctx)
			return
		}
		n, err := s.fill(in, *b.buf)
		if n > 0 {
			b.n = n
			b.users.Store(2)
			s.hash <- b // never blocks: both channels have room for all blocks
			s.parse <- b
		}
		if err != nil {
			s.err = err
			return
		}
	}
}

// fill reads until buf is full, or the input or the context ends.
func (s *source) fill(in io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf); {
		if err := context.Cause(s.ctx); err != nil {
			return n, err
		}
		m, err := in.Read(buf[n:])
		if n += m; err != nil {
			return n, err
		}
		if m > 0 {
			idle = 0
		} else if idle++; idle > 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// sum hashes until the input ends.
func (s *source) sum() {
	for b := range s.hash {
		_, _ = s.hasher.Write((*b.buf)[:b.n])
		s.release(b)
	}
}

func (s *source) release(b *block) {
	if b.users.Add(-1) == 0 {
		s.free <- b
	}
}

// Read implements io.Reader for the parser.
func (s *source) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.current != nil {
			s.release(s.current)
			s.current = nil
		}
		var ok bool
		select {
		case s.current, ok = <-s.parse:
		case <-s.ctx.Done():
			return 0, &inputError{context.Cause(s.ctx)}
		}
		if !ok {
			s.current = nil
			if errors.Is(s.err, io.EOF) {
				return 0, io.EOF
			}
			return 0, &inputError{s.err}
		}
		s.rest = (*s.current.buf)[:s.current.n]
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// inputError is an error of the input itself, in contrast to a malformed tar.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// recorder keeps the bytes that the tar parser reads, so that the tar can be reassembled. It does
// not keep content that the layer's files hold.
type recorder struct {
	source *source
	off    bool // do not keep
	raw    []byte
	total  int64 // bytes read
}

// Read implements io.Reader.
func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.source.Read(p)
	r.total += int64(n)
	if !r.off {
		if len(r.raw)+n > maxRecord {
			return n, fmt.Errorf("headers of one entry exceed %d bytes: %w", maxRecord, errdefs.ErrInvalidArgument)
		}
		r.raw = append(r.raw, p[:n]...)
	}
	return n, err
}

// take returns the bytes kept so far. They belong to the caller.
func (r *recorder) take() []byte {
	raw := r.raw
	r.raw = nil
	return raw
}
