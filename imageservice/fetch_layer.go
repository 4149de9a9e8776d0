package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/decompress"
	"github.com/micarun/mica/overlay"
)

// layerArgs describes a layer to fetch.
type layerArgs struct {
	repository *registry.Repository
	allowances []*overlay.Allowance // one for each host of repository
	copies     *overlay.Allowance   // of copied layers
	blob       ocispec.Descriptor
	diffID     digest.Digest
	repeated   bool // another layer of the image has the same blob, whose bytes add to the allowance once
	progress   *layerProgress
}

// fetchLayer downloads, decompresses, extracts and checks one layer in one pass. If a host sends
// something other than the blob, fetchLayer asks the next hosts.
func (s *Service) fetchLayer(ctx context.Context, a layerArgs) (*overlay.Draft, error) {
	release, err := a.repository.AcquireSlot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	a.progress.state.Store(int32(LayerFetching))
	if draft := s.copyLayer(ctx, a); draft != nil {
		return draft, nil
	}
	draft, err := s.extract(ctx, a)
	for errdefs.IsDataLoss(err) && a.repository.Hosts() > 1 {
		a.repository, a.allowances = a.repository.WithoutFirst(), a.allowances[1:]
		bad := err
		if draft, err = s.extract(ctx, a); err != nil {
			err = fmt.Errorf("%w; before: %s", err, bad.Error()) // bad does not determine the class
		}
	}
	if err != nil {
		return nil, err
	}
	if draft.DiffID != a.diffID {
		err := fmt.Errorf("layer has diff ID %s, configuration says %s: %w", draft.DiffID, a.diffID, errdefs.ErrDataLoss)
		return nil, errors.Join(err, draft.Discard())
	}
	a.progress.state.Store(int32(LayerFetched))
	klog.FromContext(ctx).V(4).Info("Fetched layer", "blob", a.blob.Digest, "bytes", a.blob.Size)
	return draft, nil
}

// copyLayer copies a layer that the store has on top of other layers. It returns nil if there is
// none, or an error that fetching the layer may avoid. Only a blob from which the layer was extracted
// before is known to hold it. A repeated layer is not copied, because an image may repeat it hundreds
// of times.
func (s *Service) copyLayer(ctx context.Context, a layerArgs) *overlay.Draft {
	if a.repeated || !s.store.HasSource(a.blob.Digest, a.diffID) {
		return nil
	}
	log := klog.FromContext(ctx)
	draft, err := s.layers.Copy(ctx, a.diffID, a.copies)
	if err != nil {
		if !errdefs.IsNotFound(err) && ctx.Err() == nil {
			log.Info("Cannot copy layer, fetching it", "blob", a.blob.Digest, "err", err)
		}
		return nil
	}
	a.progress.state.Store(int32(LayerFetched))
	log.V(4).Info("Copied layer", "blob", a.blob.Digest, "diffID", a.diffID)
	return draft
}

// extract downloads and extracts in parallel. If both fail, the error of the download is the cause,
// except for an error of the disk: content that cannot be extracted is read to its end, to learn
// whether it is the requested content.
func (s *Service) extract(ctx context.Context, a layerArgs) (*overlay.Draft, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pipe := newChunkPipe(a.blob.Size)
	downloaded := make(chan error, 1)
	go func() {
		err := a.repository.Blob(ctx, a.blob, counted{pipe, &s.fetched}, &a.progress.done)
		pipe.finish(err)
		downloaded <- err
	}()
	draft, err := s.apply(ctx, pipe, a)
	if isDiskError(err) {
		cancel()
	} else {
		// An error here is the error of the download. Bytes after the end of a compressed stream
		// count for the digest.
		_, _ = io.Copy(io.Discard, pipe)
	}
	pipe.abandon()
	if downloadErr := <-downloaded; downloadErr != nil && !isDiskError(err) {
		err = downloadErr
	} else if err != nil {
		err = fmt.Errorf("extract: %w", err)
	}
	if err == nil {
		return draft, nil
	}
	if draft != nil {
		err = errors.Join(err, draft.Discard())
	}
	return nil, err
}

// counted counts the bytes written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

// Write implements io.Writer.
func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// isDiskError reports whether an error comes from this node's disk and not from the content.
func isDiskError(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Service) apply(ctx context.Context, blob io.Reader, a layerArgs) (*overlay.Draft, error) {
	tar, err := s.streams.Open(ctx, blob, a.blob.Size)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return s.layers.ApplyWithin(ctx, a.allowances[0], layerTar{tar, a})
}

// layerTar is the uncompressed tar of a layer.
type layerTar struct {
	*decompress.Stream
	layer layerArgs
}

var _ overlay.Decompressed = layerTar{}

// Repeated implements [overlay.Decompressed].
func (t layerTar) Repeated() int64 {
	if t.layer.repeated {
		return t.layer.blob.Size
	}
	return 0
}
