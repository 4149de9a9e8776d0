package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/journal"
	"github.com/micarun/mica/overlay"
)

// progressInterval is how often PullArgs.Progress hears of bytes.
const progressInterval = 100 * time.Millisecond

// PullArgs says what to pull.
type PullArgs struct {
	Ref  string                 // reference as users write it: busybox, host:5000/ns/name:tag, name@sha256:…
	Auth *runtimeapi.AuthConfig // credentials; nil for those of Options.DockerConfig or none
	// Progress, when set, is called from the goroutine of the caller of Pull, about ten times a second, with layers that have moved.
	Progress func(LayerProgress)
}

// Pull makes the image of a reference present and returns it. It asks the registry even when the reference is known, and moves it when it stands for
// another image now. Layers that the store has are not fetched.
//
// A pull of the same reference with the same credentials that is already running is joined. When ctx ends Pull returns, but the pull goes on under
// Options.PullTimeout.
//
// Errors: errdefs.ErrInvalidArgument (reference, credentials, manifest), ErrNotFound (image, platform), ErrUnauthenticated, ErrPermissionDenied,
// ErrUnavailable (no host could be reached or all were busy), ErrDataLoss (content does not have its digest), ErrNotImplemented (kind of image).
func (s *Service) Pull(ctx context.Context, a PullArgs) (Image, error) {
	ref, err := parseReference(a.Ref)
	if err != nil {
		return Image{}, err
	}
	cred, err := s.credentialSource(a.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	key, err := pullKey(ref, a.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	f, _, err := s.pulls.join(ctx, flightArgs[Image, *pullProgress]{
		key: key, keep: true,
		info: &pullProgress{ref: ref.String(), started: time.Now()},
		run: func(ctx context.Context, p *pullProgress) (Image, error) {
			ctx, op := s.journal.Begin(ctx, "pull image", journal.Subject{Image: ref.String()})
			journal.Detail(ctx, p.String)
			img, err := s.pull(ctx, ref, cred, p)
			if op.End(err); err != nil {
				return Image{}, fmt.Errorf("pull %s: %w", ref, err)
			}
			return img, nil
		},
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	defer f.release()
	return follow(ctx, f, a.Progress)
}

// pullKey is equal for pulls that may be one. The digest keeps secrets out of it.
func pullKey(ref reference.Named, a *runtimeapi.AuthConfig) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		return "", fmt.Errorf("encode credentials: %w", err)
	}
	return ref.String() + " " + digest.FromBytes(data).String(), nil
}

// follow waits for a pull and reports its progress.
func follow(ctx context.Context, f *flight[Image, *pullProgress], progress func(LayerProgress)) (Image, error) {
	if progress == nil {
		return f.wait(ctx)
	}
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	var last []LayerProgress
	for {
		select {
		case <-ticker.C:
			last = f.info.report(last, progress)
			continue
		case <-f.done:
		case <-ctx.Done():
		}
		f.info.report(last, progress)
		return f.wait(ctx)
	}
}

// pull is one run of a pull, whoever waits for it.
func (s *Service) pull(ctx context.Context, ref reference.Named, cred credentialSource, p *pullProgress) (Image, error) {
	timeout := s.options().PullTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no end within %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	journal.Enter(ctx, "resolve")
	src, err := s.newSource(ref, cred)
	if err != nil {
		return Image{}, err
	}
	defer src.close()
	if img, ok, err := s.upToDate(ctx, src); ok || err != nil {
		return img, err
	}
	top, err := src.manifest(ctx, ocispec.Descriptor{})
	if err != nil {
		return Image{}, fmt.Errorf("resolve: %w", err)
	}
	platform, err := platforms.Parse(s.options().Platform)
	if err != nil {
		return Image{}, fmt.Errorf("platform: %w", err)
	}
	matcher := platforms.Only(platform)
	manifest, err := src.choose(ctx, top, matcher)
	if err != nil {
		return Image{}, err
	}
	journal.Enter(ctx, "fetch configuration")
	data, config, err := src.parsedConfig(ctx, manifest)
	if err != nil {
		return Image{}, err
	}
	if err := manifest.checkConfig(config, matcher); err != nil {
		return Image{}, err
	}
	j := &pullJob{service: s, source: src, progress: p, manifest: manifest, diffIDs: config.RootFS.DiffIDs, chains: chainIDs(config.RootFS.DiffIDs)}
	for range src.hosts {
		j.allowances = append(j.allowances, s.layers.NewAllowance())
	}
	img, err := s.finishPull(ctx, j, top.digest, imageFacts{data, manifest.checkpoint})
	if err != nil {
		// Some layers may have been committed.
		s.sweep(ctx)
	}
	return img, err
}

// parsedConfig returns the configuration that a manifest names, as it is and decoded.
func (s *source) parsedConfig(ctx context.Context, manifest document) ([]byte, ocispec.Image, error) {
	data := manifest.configData
	if data == nil {
		c, err := s.config(ctx, manifest.config)
		if err != nil {
			return nil, ocispec.Image{}, fmt.Errorf("fetch configuration %s: %w", manifest.config.Digest, err)
		}
		data = c.data
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, ocispec.Image{}, classified{err, errdefs.ErrInvalidArgument}
	}
	return data, config, nil
}

// finishPull makes the layers present and records the image. Meanwhile they are reserved, so that nobody prunes what no image names yet.
func (s *Service) finishPull(ctx context.Context, j *pullJob, manifest digest.Digest, facts imageFacts) (Image, error) {
	release := s.layers.Reserve(j.chains...)
	defer release()
	if err := j.layers(ctx); err != nil {
		return Image{}, err
	}
	if facts.checkpoint != "" {
		ok, err := s.holdsCheckpoint(ctx, j.chains)
		if err != nil {
			return Image{}, fmt.Errorf("look for the checkpoint of container %q: %w", facts.checkpoint, err)
		}
		if !ok {
			facts.checkpoint = ""
		}
	}
	journal.Enter(ctx, "record image")
	return s.recordPull(j.source.ref, manifest, facts)
}

// upToDate spares the registry and the node a manifest when the reference is known and a HEAD tells that it has not moved.
func (s *Service) upToDate(ctx context.Context, src *source) (Image, bool, error) {
	if _, err := s.Get(src.ref.String()); err != nil {
		return Image{}, false, nil
	}
	d := src.probe(ctx)
	if d == "" {
		return Image{}, false, nil
	}
	byDigest, err := withDigest(src.ref, d)
	if err != nil {
		return Image{}, false, err
	}
	img, err := s.Get(byDigest.String())
	if err != nil {
		return Image{}, false, nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	// It may have been removed since.
	if _, err := s.Get(img.ID.String()); err != nil {
		return Image{}, false, nil
	}
	img, err = s.point(img.ID, src.ref)
	return img, err == nil, err
}

// recordPull names the image by what was asked for and by the digest of what that stood for.
func (s *Service) recordPull(ref reference.Named, d digest.Digest, facts imageFacts) (Image, error) {
	if err := failpoint.Hit("imageservice/before-record"); err != nil {
		return Image{}, err
	}
	byDigest, err := withDigest(ref, d)
	if err != nil {
		return Image{}, err
	}
	img, err := s.record(facts, ref, byDigest)
	if err != nil {
		return Image{}, fmt.Errorf("record image: %w", err)
	}
	s.usage.changed()
	return img, nil
}

// pullJob is the part of a pull that makes the layers present.
type pullJob struct {
	service  *Service
	source   *source
	progress *pullProgress
	manifest document
	diffIDs  []digest.Digest
	chains   []digest.Digest
	// allowances are what the layers may take together, by how many hosts have served something else than the blob
	// before: what these sent must not count against the image.
	allowances []*overlay.Allowance
}

// fetchedLayer is a layer on disk that is not part of the store yet, or has become so meanwhile.
type fetchedLayer struct {
	flight *flight[*overlay.Draft, *layerProgress]
	draft  *overlay.Draft
	own    bool // this pull fetched its own blob for it
}

// layers fetches the layers that are missing, all at the same time as far as the limits allow, and commits them base first.
func (j *pullJob) layers(ctx context.Context) error {
	list := make([]pulledLayer, len(j.chains))
	for i, l := range j.manifest.layers {
		list[i] = pulledLayer{digest: l.Digest, total: l.Size, live: new(layerProgress)}
	}
	j.progress.start(list)
	journal.Enter(ctx, "fetch layers")
	present := j.present()
	for i := range present {
		j.progress.set(i, LayerExists)
	}
	fetched := make([]fetchedLayer, len(j.chains))
	defer func() {
		for _, f := range fetched {
			if f.flight != nil {
				f.flight.release()
			}
		}
	}()
	g, fetchCtx := errgroup.WithContext(ctx)
	g.SetLimit(j.service.options().Concurrency)
	for i := present; i < len(j.chains); i++ {
		g.Go(func() (err error) {
			fetched[i], err = j.fetch(fetchCtx, i)
			if err != nil {
				return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(j.chains), j.manifest.layers[i].Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("fetch layers: %w", err)
	}
	journal.Enter(ctx, "commit layers")
	if err := j.commit(ctx, fetched); err != nil {
		return fmt.Errorf("commit layers: %w", err)
	}
	for i := present; i < len(j.chains); i++ {
		j.progress.set(i, LayerComplete)
	}
	return j.remember(fetched)
}

// present returns how many layers, from the base up, the store has.
func (j *pullJob) present() int {
	for i, chain := range j.chains {
		if _, err := j.service.layers.Layer(chain); err != nil {
			return i
		}
	}
	return len(j.chains)
}

// layerFlight is a fetch of a layer that pulls share.
type layerFlight = flight[*overlay.Draft, *layerProgress]

// fetch gets layer i onto the disk, or waits for another pull that does, and whose allowance pays for it. When the other one fails,
// perhaps for want of the right credentials or because its other layers took the allowance, it tries by itself; when the other one asks another registry that is slow, it does so beside it.
func (j *pullJob) fetch(ctx context.Context, i int) (fetchedLayer, error) {
	for {
		if err := ctx.Err(); err != nil {
			return fetchedLayer{}, err
		}
		f, started, err := j.join(ctx, i, "")
		if err != nil {
			return fetchedLayer{}, err
		}
		window := j.service.options().StallTimeout / joinWindows
		if !started && f.info.registry != j.source.registry() && awaitJoined(ctx, f, window, j.manifest.layers[i].Size) {
			return j.fetchBeside(ctx, i, f)
		}
		draft, err := f.wait(ctx)
		if err == nil {
			return fetchedLayer{flight: f, draft: draft, own: started}, nil
		}
		f.release()
		if started || ctx.Err() != nil {
			return fetchedLayer{}, err
		}
	}
}

// join begins a fetch of layer i or joins the one that runs. beside names a registry for a fetch of its own.
func (j *pullJob) join(ctx context.Context, i int, beside string) (f *layerFlight, started bool, err error) {
	f, started, err = j.service.fetches.join(ctx, flightArgs[*overlay.Draft, *layerProgress]{
		key:  j.chains[i].String() + beside,
		info: &layerProgress{registry: j.source.registry()},
		run: func(ctx context.Context, p *layerProgress) (*overlay.Draft, error) {
			ctx, cancel := context.WithTimeout(ctx, j.service.options().PullTimeout)
			defer cancel()
			return j.service.fetchLayer(ctx, layerArgs{
				source: j.source, allowances: j.allowances, blob: j.manifest.layers[i], diffID: j.diffIDs[i], progress: p,
			})
		},
	})
	if err == nil {
		j.progress.share(i, f.info)
	}
	return f, started, err
}

// fetchBeside fetches layer i from the pull's own registry while slow, which it holds, goes on. The first that succeeds counts.
func (j *pullJob) fetchBeside(ctx context.Context, i int, slow *layerFlight) (fetchedLayer, error) {
	own, started, err := j.join(ctx, i, " "+j.source.registry())
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
	return fetchedLayer{flight: first, draft: draft, own: started && first == own}, nil
}

// commit makes the fetched layers part of the store. Another pull may have done so with some of them, always from the base up.
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

// remember records which blobs gave which layers.
func (j *pullJob) remember(fetched []fetchedLayer) error {
	added := false
	for i, f := range fetched {
		if !f.own {
			continue
		}
		source := layerSource{Digest: j.manifest.layers[i].Digest, SourceRepository: j.source.ref.Name()}
		if err := j.service.distribution.add(j.diffIDs[i], source); err != nil {
			return err
		}
		added = true
	}
	if !added {
		return nil
	}
	return j.service.distribution.sync()
}

// layerArgs says which layer to fetch.
type layerArgs struct {
	source     *source
	allowances []*overlay.Allowance // one for each host of source
	blob       ocispec.Descriptor
	diffID     digest.Digest
	progress   *layerProgress
}

// fetchLayer downloads, decompresses, extracts and checks one layer in one pass. When a host served something else than the blob, the other hosts are asked.
func (s *Service) fetchLayer(ctx context.Context, a layerArgs) (*overlay.Draft, error) {
	registry := siteOf(a.source.registry())
	if err := s.slots.acquire(ctx, registry); err != nil {
		return nil, err
	}
	defer s.slots.release(registry)
	a.progress.state.Store(int32(LayerFetching))
	draft, err := s.extract(ctx, a)
	for errdefs.IsDataLoss(err) && len(a.source.hosts) > 1 {
		a.source, a.allowances = a.source.withoutFirst(), a.allowances[1:]
		bad := err
		if draft, err = s.extract(ctx, a); err != nil {
			err = fmt.Errorf("%w; before: %v", err, bad)
		}
	}
	if err != nil {
		return nil, err
	}
	if draft.DiffID != a.diffID {
		err := corrupt("layer has diff ID %s, configuration says %s", draft.DiffID, a.diffID)
		return nil, errors.Join(err, draft.Discard())
	}
	a.progress.state.Store(int32(LayerFetched))
	klog.FromContext(ctx).V(4).Info("Fetched layer", "blob", a.blob.Digest, "bytes", a.blob.Size)
	return draft, nil
}

// extract runs the download and the extraction side by side. When both fail the download's error is the cause, but for what the disk says:
// content that cannot be extracted is read to its end to learn whether it was the right content at all.
func (s *Service) extract(ctx context.Context, a layerArgs) (*overlay.Draft, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pipe := newChunkPipe()
	downloaded := make(chan error, 1)
	go func() {
		err := a.source.blob(ctx, a.blob, counted{pipe, &s.fetched}, &a.progress.done)
		pipe.finish(err)
		downloaded <- err
	}()
	draft, err := s.apply(ctx, pipe, a)
	if isDiskError(err) {
		cancel()
	} else {
		// The error, if any, is that of the download. Bytes after the end of a compressed stream count for the digest.
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

// isDiskError tells whether an error comes from this node's disk and not from the content.
func isDiskError(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Service) apply(ctx context.Context, blob io.Reader, a layerArgs) (*overlay.Draft, error) {
	tar, err := s.decompress(ctx, blob, a.blob.Size)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return s.layers.ApplyWithin(ctx, a.allowances[0], tar)
}
