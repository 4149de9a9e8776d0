package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resetAfter is how many bytes an attempt must bring, at least, to be no failure in succession.
const resetAfter = 1 << 20

// transferError classes an error of a body: a dead transfer may be resumed, what the caller cancelled may not.
func transferError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	} else if cause != nil {
		err = cause
	}
	return classified{fmt.Errorf("transfer: %w", err), errdefs.ErrUnavailable}
}

// download is the transfer of one blob into a writer, whatever number of connections and hosts it takes.
type download struct {
	source *source
	want   ocispec.Descriptor
	dst    io.Writer
	done   *atomic.Int64 // bytes passed on

	hash   digest.Digester
	offset int64 // bytes passed on
	mark   int64 // offset at the last failure that counted
	buffer []byte
}

// blob writes the blob that want describes to dst and checks its size and digest. When it returns nil dst has received exactly that
// content; on an error dst has received some beginning of it, or of something else.
func (s *source) blob(ctx context.Context, want ocispec.Descriptor, dst io.Writer, done *atomic.Int64) error {
	d := &download{source: s, want: want, dst: dst, done: done, hash: want.Digest.Algorithm().Digester(), buffer: make([]byte, 128<<10)}
	done.Store(0)
	may := func(h *host) bool { return h.pull }
	err := s.eachHost(ctx, may, func(h *host) error { return d.resume(ctx, blobOpener(h, want.Digest)) }, d.progressed)
	if err != nil && ctx.Err() == nil && !errdefs.IsDataLoss(err) {
		err = d.foreign(ctx, err)
	}
	if err != nil {
		return err
	}
	if got := d.hash.Digest(); got != want.Digest {
		return corrupt("blob has digest %s, not %s", got, want.Digest)
	}
	return nil
}

const (
	// maxForeignURLs is how many URLs of a layer are tried. Windows base images, the only ones that have any, have one.
	maxForeignURLs = 4
	// maxForeignURL bounds the length of one, in bytes. A signed URL has about 1 KiB.
	maxForeignURL = 4 << 10
)

// foreign gets the layer from where its manifest says, after the registry has failed with err. URLs that cannot be asked,
// and those beyond the limit, are passed over.
func (d *download) foreign(ctx context.Context, err error) error {
	for _, u := range foreignURLs(d.want) {
		o := foreignOpener(d.source.hosts[len(d.source.hosts)-1], u)
		failure := d.source.repeat(ctx, mirrorAttempts, func() error { return d.resume(ctx, o) }, d.progressed)
		if failure == nil {
			return nil
		}
		// The class remains that of the registry's answer.
		err = fmt.Errorf("%w; layer URL %s: %v", err, withoutQuery(u), failure)
		if ctx.Err() != nil || errdefs.IsDataLoss(failure) {
			break
		}
	}
	return err
}

// foreignURLs returns where a layer is that its registry may not distribute.
func foreignURLs(d ocispec.Descriptor) []string {
	if !strings.Contains(d.MediaType, ".nondistributable.") && !strings.Contains(d.MediaType, ".foreign.") {
		return nil
	}
	var list []string
	for _, u := range d.URLs {
		if len(u) <= maxForeignURL && len(list) < maxForeignURLs {
			list = append(list, u)
		}
	}
	return list
}

// opener starts a transfer with the given request header.
type opener struct {
	open  func(ctx context.Context, header http.Header) (*http.Response, error)
	stall time.Duration
}

func blobOpener(h *host, d digest.Digest) opener {
	return opener{stall: h.stall, open: func(ctx context.Context, header http.Header) (*http.Response, error) {
		return h.get(ctx, http.MethodGet, "/blobs/"+d.String(), header)
	}}
}

func foreignOpener(h *host, address string) opener {
	return opener{stall: h.stall, open: func(ctx context.Context, header http.Header) (*http.Response, error) {
		return h.getURL(ctx, address, header)
	}}
}

// progressed tells whether enough has arrived since it last said so.
func (d *download) progressed() bool {
	if d.offset-d.mark < resetAfter {
		return false
	}
	d.mark = d.offset
	return true
}

// resume transfers what is missing over one connection.
func (d *download) resume(ctx context.Context, o opener) error {
	if d.offset == d.want.Size && d.offset > 0 {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	header := make(http.Header)
	if d.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.offset))
	}
	resp, err := o.open(ctx, header)
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusRequestedRangeNotSatisfiable && d.offset > 0 {
		return corrupt("blob ends after %d bytes, its descriptor says %d", d.offset, d.want.Size)
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := newPaceReader(resp.Body, o.stall, cancel)
	if err := d.skipTo(resp, body); err != nil {
		return transferError(ctx, err)
	}
	return d.copy(ctx, body)
}

// skipTo reads over what a server sends again although it was asked for the rest only.
func (d *download) skipTo(resp *http.Response, body io.Reader) error {
	if d.offset == 0 {
		return nil
	}
	if resp.StatusCode != http.StatusPartialContent {
		_, err := io.CopyN(io.Discard, body, d.offset)
		return err
	}
	want := fmt.Sprintf("bytes %d-", d.offset)
	if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
		return fmt.Errorf("asked for bytes from %d, got %q", d.offset, got)
	}
	return nil
}

func (d *download) copy(ctx context.Context, body io.Reader) error {
	for {
		n, err := body.Read(d.buffer)
		if int64(n) > d.want.Size-d.offset {
			return corrupt("blob has more than the %d bytes that its descriptor says", d.want.Size)
		}
		d.hash.Hash().Write(d.buffer[:n])
		if _, err := d.dst.Write(d.buffer[:n]); err != nil {
			return fmt.Errorf("pass on blob: %w", err)
		}
		d.offset += int64(n)
		d.done.Store(d.offset)
		switch {
		case err == io.EOF && d.offset < d.want.Size:
			return d.short(ctx)
		case err == io.EOF:
			return nil
		case err != nil:
			return transferError(ctx, err)
		}
	}
}

// short is the error of a body that ended early without the connection failing. The server may have been cut off by something in between, so it is asked for the
// rest; one that has none says so then.
func (d *download) short(ctx context.Context) error {
	return transferError(ctx, fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, d.offset, d.want.Size))
}

// chunkPipe hands bytes from a writing to a reading goroutine with some slack between them, so that both can work at the same time.
type chunkPipe struct {
	chunks chan []byte
	free   chan []byte
	gone   chan struct{} // closed when the reader has lost interest
	err    error         // set before chunks is closed: why it ended
	rest   []byte        // unread part of current
	// current is the chunk being read, given back when it is empty.
	current []byte
}

const (
	chunkSize  = 128 << 10
	chunkSlack = 8
)

func newChunkPipe() *chunkPipe {
	return &chunkPipe{
		chunks: make(chan []byte, chunkSlack),
		free:   make(chan []byte, chunkSlack+2),
		gone:   make(chan struct{}),
	}
}

// Write passes a copy of b on. It fails with io.ErrClosedPipe after the reader's abandon.
func (p *chunkPipe) Write(b []byte) (int, error) {
	written := 0
	for part := range slices.Chunk(b, chunkSize) {
		var c []byte
		select {
		case c = <-p.free:
		default:
			c = make([]byte, 0, chunkSize)
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

// finish ends the stream; the reader sees err, or io.EOF when it is nil, after what was written.
func (p *chunkPipe) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	p.err = err
	close(p.chunks)
}

// abandon makes Write fail. It may be called once, by the reader.
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
