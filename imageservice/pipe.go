package imageservice

import (
	"io"
	"slices"
)

// chunkPipe passes bytes from a writing to a reading goroutine and buffers some, so that both can
// work at the same time.
type chunkPipe struct {
	chunks  chan []byte
	free    chan []byte
	gone    chan struct{} // closed by abandon
	err     error         // the reader gets it after the last chunk; set before chunks is closed
	size    int           // maximum bytes of a chunk
	current []byte        // chunk that is being read; goes to free when it is empty
	rest    []byte        // unread part of current
}

const (
	chunkSize  = 128 << 10 // bytes of a chunk, unless the whole stream has fewer
	chunkSlack = 8         // chunks between writer and reader
)

// newChunkPipe returns a pipe for size bytes; for more it is slower.
func newChunkPipe(size int64) *chunkPipe {
	return &chunkPipe{
		size:   int(min(chunkSize, max(size, 1))),
		chunks: make(chan []byte, chunkSlack),
		free:   make(chan []byte, chunkSlack+2),
		gone:   make(chan struct{}),
	}
}

// Write passes on a copy of b. It returns io.ErrClosedPipe after abandon.
func (p *chunkPipe) Write(b []byte) (int, error) {
	written := 0
	for part := range slices.Chunk(b, p.size) {
		var c []byte
		select {
		case c = <-p.free:
		default:
			c = make([]byte, 0, p.size)
		}
		select {
		case p.chunks <- append(c[:0], part...):
		case <-p.gone:
			return written, io.ErrClosedPipe
		}
		written += len(part)
	}
	return written, nil
}

// finish ends the stream. After the written bytes the reader gets err, or io.EOF if it is nil.
func (p *chunkPipe) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	p.err = err
	close(p.chunks)
}

// abandon makes Write fail. The reader calls it at most once.
func (p *chunkPipe) abandon() { close(p.gone) }

func (p *chunkPipe) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.current != nil {
			select {
			case p.free <- p.current:
			default:
			}
			p.current = nil
		}
		c, ok := <-p.chunks
		if !ok {
			return 0, p.err
		}
		p.current, p.rest = c, c
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
