package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// resetAfter is the minimum number of bytes that an attempt transfers to count as progress.
const resetAfter = 1 << 20

// Bounds of the buffer of a transfer, in bytes. Within them it has one byte more than the blob, so
// that a blob that is too long is noticed.
const (
	minBuffer = 512
	maxBuffer = 128 << 10
)

// Blob writes the blob of a descriptor to dst and checks its size and digest. It resumes a transfer
// that breaks, on the same host or the next one. If every host fails, it asks the URLs of a layer
// that registries may not distribute.
//
// received, which may be nil, gets the number of bytes passed to dst so far. After a nil error dst
// has exactly the blob. After an error it has some beginning of the blob, or other content.
//
// Errors: those of Resolve, and errors of dst.
func (r *Repository) Blob(ctx context.Context, want ocispec.Descriptor, dst io.Writer, received *atomic.Int64) error {
	if received == nil {
		received = new(atomic.Int64)
	}
	received.Store(0)
	d := &download{repository: r, want: want, dst: dst, received: received, hash: want.Digest.Algorithm().Digester(), buffer: make([]byte, min(maxBuffer, max(want.Size+1, minBuffer)))}
	may := func(h *host) bool { return h.pull }
	err := r.eachHost(ctx, may, func(h *host) error { return d.resume(ctx, blobOpener(h, want.Digest)) }, d.progressed)
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

// download is the transfer of one blob over any number of connections and hosts.
type download struct {
	repository *Repository
	want       ocispec.Descriptor
	dst        io.Writer
	received   *atomic.Int64 // offset, for the caller

	hash   digest.Digester
	offset int64 // bytes passed to dst
	mark   int64 // offset when progressed last returned true
	buffer []byte
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

// progressed reports whether resetAfter bytes have arrived since it last returned true.
func (d *download) progressed() bool {
	if d.offset-d.mark < resetAfter {
		return false
	}
	d.mark = d.offset
	return true
}

// resume transfers the rest of the blob over one connection.
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

// skipTo discards the bytes that a server sends again although the request asked for the rest only.
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
		d.received.Store(d.offset)
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

// short returns the error of a body that ended early without an error of the connection. A proxy
// may have cut the server off, so the rest is requested. A server that has no rest answers that it
// has none.
func (d *download) short(ctx context.Context) error {
	return transferError(ctx, fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, d.offset, d.want.Size))
}
