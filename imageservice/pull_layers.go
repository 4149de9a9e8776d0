package imageservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/overlay"
)

// pullJob is the part of a pull that makes the layers present.
type pullJob struct {
	service    *Service
	repository *registry.Repository
	progress   *pullProgress
	manifest   registry.Manifest
	diffIDs    []digest.Digest
	chains     []digest.Digest
	// allowances bound the cost of all layers together. Element i applies after i hosts have sent
	// something other than the blob: what these sent must not count against the image.
	allowances []*overlay.Allowance
	// copies bounds the cost of all layers that are copied instead of fetched.
	copies *overlay.Allowance
}

// fetchedLayer is a layer on disk that was not part of the store when the fetch began.
type fetchedLayer struct {
	call  *layerCall
	draft *overlay.Draft
	own   bool // this pull fetched its own blob for it
}

// layers fetches the missing layers in parallel, within the limits, and commits them base first.
func (j *pullJob) layers(ctx context.Context) error {
	list := make([]pulledLayer, len(j.chains))
	for i, l := range j.manifest.Layers {
		list[i] = pulledLayer{digest: l.Digest, total: l.Size, live: new(layerProgress)}
	}
	j.progress.start(list)
	operations.Enter(ctx, "fetch layers")
	present := j.present()
	for i := range present {
		j.progress.set(i, LayerExists)
	}
	fetched := make([]fetchedLayer, len(j.chains))
	defer func() {
		for _, f := range fetched {
			if f.call != nil {
				f.call.release()
			}
		}
	}()
	if err := j.fetchAll(ctx, fetched, present); err != nil {
		return fmt.Errorf("fetch layers: %w", err)
	}
	operations.Enter(ctx, "commit layers")
	if err := j.commit(ctx, fetched); err != nil {
		return fmt.Errorf("commit layers: %w", err)
	}
	for i := present; i < len(j.chains); i++ {
		j.progress.set(i, LayerComplete)
	}
	return j.remember(fetched)
}

// fetchAll fetches the layers from index present up.
func (j *pullJob) fetchAll(ctx context.Context, fetched []fetchedLayer, present int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(j.service.options().Concurrency)
	for i := present; i < len(j.chains); i++ {
		g.Go(func() (err error) {
			fetched[i], err = j.fetch(ctx, i)
			if err != nil {
				return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(j.chains), j.manifest.Layers[i].Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// present returns the number of layers, from the base up, that the store has.
func (j *pullJob) present() int {
	for i, chain := range j.chains {
		if _, err := j.service.layers.Layer(chain); err != nil {
			return i
		}
	}
	return len(j.chains)
}

// fetch makes layer i present on disk. If another pull is fetching it, that pull's allowance pays
// and fetch waits. If the other pull fails, perhaps for lack of credentials or of allowance, fetch
// tries itself. If the other pull uses another registry, which is slow, fetch runs in parallel with
// it.
func (j *pullJob) fetch(ctx context.Context, i int) (fetchedLayer, error) {
	for {
		if err := ctx.Err(); err != nil {
			return fetchedLayer{}, err
		}
		c, started, err := j.join(ctx, i, "")
		if err != nil {
			return fetchedLayer{}, err
		}
		window := j.service.options().StallTimeout / joinWindows
		if !started && c.info.registry != j.repository.Registry() && awaitJoined(ctx, c, window, j.manifest.Layers[i].Size) {
			return j.fetchBeside(ctx, i, c)
		}
		draft, err := c.wait(ctx)
		if err == nil {
			return fetchedLayer{call: c, draft: draft, own: started}, nil
		}
		c.release()
		if started || ctx.Err() != nil {
			return fetchedLayer{}, err
		}
	}
}

// join begins a fetch of layer i or joins the running one. A suffix distinguishes a fetch that runs
// in parallel with another.
func (j *pullJob) join(ctx context.Context, i int, suffix string) (c *layerCall, started bool, err error) {
	c, started, err = j.service.fetches.join(ctx, callArgs[*overlay.Draft, *layerProgress]{
		key:  j.chains[i].String() + suffix,
		info: &layerProgress{registry: j.repository.Registry()},
		run: func(ctx context.Context, p *layerProgress) (*overlay.Draft, error) {
			ctx, cancel := context.WithTimeout(ctx, j.service.options().PullTimeout)
			defer cancel()
			return j.service.fetchLayer(ctx, layerArgs{
				repository: j.repository, allowances: j.allowances, blob: j.manifest.Layers[i], diffID: j.diffIDs[i],
				repeated: j.repeated(i), progress: p, copies: j.copies,
			})
		},
	})
	if err == nil {
		j.progress.share(i, c.info)
	}
	return c, started, err
}

// repeated reports whether a layer below layer i has the same blob.
func (j *pullJob) repeated(i int) bool {
	blob := j.manifest.Layers[i].Digest
	return slices.ContainsFunc(j.manifest.Layers[:i], func(d ocispec.Descriptor) bool { return d.Digest == blob })
}

// fetchBeside fetches layer i from the pull's own registry in parallel with slow, which it holds.
// It returns the first fetch that succeeds.
func (j *pullJob) fetchBeside(ctx context.Context, i int, slow *layerCall) (fetchedLayer, error) {
	own, started, err := j.join(ctx, i, " "+j.repository.Registry())
	if err != nil {
		slow.release()
		return fetchedLayer{}, err
	}
	first, err := awaitFirst(ctx, own, slow)
	if err != nil {
		return fetchedLayer{}, err
	}
	draft, err := first.wait(ctx)
	if err != nil {
		first.release()
		return fetchedLayer{}, err
	}
	return fetchedLayer{call: first, draft: draft, own: started && first == own}, nil
}

// commit makes the fetched layers part of the store. Another pull may have committed some of them,
// always from the base up.
func (j *pullJob) commit(ctx context.Context, fetched []fetchedLayer) error {
	j.service.commit.Lock()
	defer j.service.commit.Unlock()
	present := j.present()
	var parent digest.Digest
	if present > 0 {
		parent = j.chains[present-1]
	}
	var drafts []*overlay.Draft
	for i := present; i < len(fetched); i++ {
		if fetched[i].draft == nil {
			return fmt.Errorf("layer %s has gone from the store during the pull: %w", j.chains[i], errdefs.ErrUnavailable)
		}
		drafts = append(drafts, fetched[i].draft)
	}
	if len(drafts) == 0 {
		return nil
	}
	_, err := j.service.layers.Commit(ctx, parent, drafts...)
	return err
}

// remember records the blob from which each layer was extracted.
func (j *pullJob) remember(fetched []fetchedLayer) error {
	var sources []imagestore.LayerSource
	for i, f := range fetched {
		if f.own && !f.draft.Copied {
			sources = append(sources, imagestore.LayerSource{
				DiffID: j.diffIDs[i], Blob: j.manifest.Layers[i].Digest, Repository: j.repository.Reference().Name(),
			})
		}
	}
	return j.service.store.AddSources(sources...)
}
