package imageservice

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice/imagestore"
	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/operations"
)

// progressInterval is the pause between calls of PullArgs.Progress.
const progressInterval = 100 * time.Millisecond

// PullArgs describes a pull.
type PullArgs struct {
	Ref  string                 // reference as users write it: busybox, host:5000/ns/name:tag, name@sha256:…
	Auth *runtimeapi.AuthConfig // credentials; nil for those of Options.DockerConfig or none
	// Progress, if not nil, is called about ten times a second with each layer that has progressed.
	// The goroutine that called Pull calls it.
	Progress func(LayerProgress)
}

// Pull makes the image of a reference present and returns it. It asks the registry even if the
// reference is known, and moves the reference if it stands for another image now. It does not fetch
// layers that the store has.
//
// It joins a running pull of the same reference with the same credentials. When ctx ends Pull
// returns, but the pull continues under Options.PullTimeout.
//
// Errors: errdefs.ErrInvalidArgument (reference, credentials, manifest), ErrNotFound (image,
// platform), ErrUnauthenticated, ErrPermissionDenied, ErrUnavailable (no host answers, or all are
// busy), ErrDataLoss (content does not have its digest), ErrNotImplemented (kind of image).
func (s *Service) Pull(ctx context.Context, a PullArgs) (Image, error) {
	ref, err := imagestore.ParseReference(a.Ref)
	if err != nil {
		return Image{}, err
	}
	auth, err := registryAuth(a.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	key, err := pullKey(ref, a.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	c, _, err := s.pulls.join(ctx, callArgs[Image, *pullProgress]{
		key: key, keep: true,
		info: &pullProgress{ref: ref.String(), started: time.Now()},
		run: func(ctx context.Context, p *pullProgress) (Image, error) {
			ctx, op := s.operations.Begin(ctx, "pull image", operations.Subject{Image: ref.String()})
			operations.Detail(ctx, p.String)
			img, err := s.pull(ctx, ref, auth, p)
			if op.End(err); err != nil {
				return Image{}, fmt.Errorf("pull %s: %w", ref, err)
			}
			return img, nil
		},
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	defer c.release()
	return follow(ctx, c, a.Progress)
}

// pullKey is equal for pulls that can be joined. The digest hides the credentials.
func pullKey(ref reference.Named, a *runtimeapi.AuthConfig) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		return "", fmt.Errorf("encode credentials: %w", err)
	}
	return ref.String() + " " + digest.FromBytes(data).String(), nil
}

// follow waits for a pull and reports its progress.
func follow(ctx context.Context, c *call[Image, *pullProgress], progress func(LayerProgress)) (Image, error) {
	if progress == nil {
		return c.wait(ctx)
	}
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	var last []LayerProgress
	for {
		select {
		case <-ticker.C:
			last = c.info.report(last, progress)
			continue
		case <-c.done:
		case <-ctx.Done():
		}
		c.info.report(last, progress)
		return c.wait(ctx)
	}
}

// pull is one run of a pull, which any number of callers wait for.
func (s *Service) pull(ctx context.Context, ref reference.Named, auth registry.Auth, p *pullProgress) (Image, error) {
	timeout := s.options().PullTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no end within %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	operations.Enter(ctx, "resolve")
	platform, err := platforms.Parse(s.options().Platform)
	if err != nil {
		return Image{}, fmt.Errorf("platform: %w", err)
	}
	matcher := platforms.Only(platform)
	repo, err := s.registries.Open(ref, auth)
	if err != nil {
		return Image{}, err
	}
	defer repo.Close()
	if img, ok, err := s.upToDate(ctx, repo); ok || err != nil {
		return img, err
	}
	manifest, err := repo.Resolve(ctx, matcher)
	if err != nil {
		return Image{}, err
	}
	operations.Enter(ctx, "fetch configuration")
	data, config, err := repo.Config(ctx, manifest, matcher)
	if err != nil {
		return Image{}, err
	}
	j := &pullJob{
		service: s, repository: repo, progress: p, manifest: manifest, copies: s.layers.NewAllowance(),
		diffIDs: config.RootFS.DiffIDs, chains: imagestore.ChainIDs(config.RootFS.DiffIDs),
	}
	for range repo.Hosts() {
		j.allowances = append(j.allowances, s.layers.NewAllowance())
	}
	img, err := s.finishPull(ctx, j, imagestore.RecordArgs{
		Config: data, Checkpoint: checkpointName(manifest.Annotations), Ref: ref, Manifest: manifest.Digest,
	})
	if err != nil {
		// Some layers may have been committed.
		s.sweepAfterPull(ctx)
	}
	return img, err
}

// finishPull makes the layers present and records the image. Until then it reserves the layers, so
// that no SweepUnused of the layer store removes them.
func (s *Service) finishPull(ctx context.Context, j *pullJob, a imagestore.RecordArgs) (Image, error) {
	release := s.layers.Reserve(j.chains...)
	defer release()
	if err := j.layers(ctx); err != nil {
		return Image{}, err
	}
	if a.Checkpoint != "" {
		ok, err := s.holdsCheckpoint(ctx, j.chains)
		if err != nil {
			return Image{}, fmt.Errorf("look for the checkpoint of container %q: %w", a.Checkpoint, err)
		}
		if !ok {
			a.Checkpoint = ""
		}
	}
	operations.Enter(ctx, "record image")
	if err := failpoint.Hit("imageservice/before-record"); err != nil {
		return Image{}, err
	}
	img, err := s.store.Record(a)
	if err != nil {
		return Image{}, fmt.Errorf("record image: %w", err)
	}
	s.usage.changed()
	return img, nil
}

// upToDate saves fetching the manifest if the reference is known and a HEAD request shows that it
// has not moved.
func (s *Service) upToDate(ctx context.Context, repo *registry.Repository) (Image, bool, error) {
	ref := repo.Reference()
	if _, err := s.store.Get(ref.String()); err != nil {
		return Image{}, false, nil //nolint:nilerr // a full pull also repairs an unreadable image
	}
	d := repo.Probe(ctx)
	if d == "" {
		return Image{}, false, nil
	}
	return s.store.Move(ref, d)
}
