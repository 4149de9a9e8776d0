package registry

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/imageconfig"
)

const (
	maxIndexDepth = 3  // indexes within each other on the way to a manifest
	maxUnnamed    = 8  // entries without a platform whose configuration is fetched
	maxOffered    = 20 // platforms that an error lists
)

// Resolve returns the manifest of the reference for a platform. It follows indexes.
//
// Errors: errdefs.ErrNotFound (image, platform), ErrUnauthenticated, ErrPermissionDenied,
// ErrUnavailable (no host answers, or all are busy), ErrDataLoss (content does not have its
// digest), ErrInvalidArgument, ErrNotImplemented (kind of image), ErrOutOfRange (limits),
// ErrFailedPrecondition (no host may resolve tags, or a certificate is not accepted).
func (r *Repository) Resolve(ctx context.Context, p platforms.MatchComparer) (Manifest, error) {
	top, err := r.manifest(ctx, ocispec.Descriptor{})
	if err != nil {
		return Manifest{}, fmt.Errorf("resolve: %w", err)
	}
	m, err := r.choose(ctx, top, p, 0)
	if err != nil {
		return Manifest{}, err
	}
	m.Digest = top.digest
	return m, nil
}

// Config returns the configuration of an image, byte for byte and decoded. It checks that the
// configuration belongs to the manifest and that the image can run on the platform. If an index
// entry names a platform, that entry has decided: build tools copy a wrong architecture into the
// configuration. A configuration without an architecture fits every platform.
//
// Errors: those of Resolve.
func (r *Repository) Config(ctx context.Context, m Manifest, p platforms.MatchComparer) ([]byte, ocispec.Image, error) {
	data, config, err := r.parsedConfig(ctx, m)
	if err != nil {
		return nil, ocispec.Image{}, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, ocispec.Image{}, fmt.Errorf("configuration has %d layers, manifest has %d: %w", len(config.RootFS.DiffIDs), len(m.Layers), errdefs.ErrInvalidArgument)
	}
	if !m.platformNamed {
		err = checkPlatform(config.Platform, p)
	}
	return data, config, err
}

// choose follows indexes from a document to the manifest for a platform. depth is the number of
// indexes above the document.
func (r *Repository) choose(ctx context.Context, c content, p platforms.MatchComparer, depth int) (Manifest, error) {
	d, err := parseDocument(c.mediaType, c.data)
	if err != nil || !d.isIndex {
		return d.manifest, err
	}
	if depth == maxIndexDepth {
		return Manifest{}, fmt.Errorf("index %s: more than %d indexes in each other: %w", c.digest, maxIndexDepth, errdefs.ErrNotImplemented)
	}
	candidates, err := forPlatform(d.entries, p)
	if err != nil {
		return Manifest{}, fmt.Errorf("index %s: %w", c.digest, err)
	}
	for _, next := range candidates {
		var m Manifest
		m, err = r.entry(ctx, next, p, depth)
		if err == nil && !namesPlatform(next) && !m.platformNamed && len(candidates) > 1 {
			err = r.fits(ctx, &m, p)
		}
		if err == nil {
			m.platformNamed = m.platformNamed || namesPlatform(next)
			return m, nil
		}
		// If the registry does not answer, it does not answer for another entry either.
		if !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) {
			break
		}
	}
	return Manifest{}, err
}

// entry fetches the document of an index entry and follows it.
func (r *Repository) entry(ctx context.Context, next ocispec.Descriptor, p platforms.MatchComparer, depth int) (Manifest, error) {
	c, err := r.manifest(ctx, next)
	if err != nil {
		return Manifest{}, fmt.Errorf("fetch manifest %s: %w", next.Digest, err)
	}
	if named, is := kindOf(next.MediaType), kindOf(c.mediaType); named != unknownKind && is != unknownKind && named != is {
		return Manifest{}, fmt.Errorf("index entry %s is served as %s, its index says %s: %w", next.Digest, c.mediaType, next.MediaType, errdefs.ErrInvalidArgument)
	}
	return r.choose(ctx, c, p, depth+1)
}

// fits fetches the configuration of a manifest for which no index entry names a platform. It
// returns errdefs.ErrNotFound if the configuration is for another platform.
func (r *Repository) fits(ctx context.Context, m *Manifest, p platforms.MatchComparer) error {
	data, config, err := r.parsedConfig(ctx, *m)
	if err != nil {
		return err
	}
	m.configData = data
	return checkPlatform(config.Platform, p)
}

// parsedConfig returns the configuration of a manifest, byte for byte and decoded.
func (r *Repository) parsedConfig(ctx context.Context, m Manifest) ([]byte, ocispec.Image, error) {
	data := m.configData
	if data == nil {
		c, err := r.config(ctx, m.Config)
		if err != nil {
			return nil, ocispec.Image{}, fmt.Errorf("fetch configuration %s: %w", m.Config.Digest, err)
		}
		data = c.data
	}
	config, err := imageconfig.Parse(data)
	if err != nil {
		return nil, ocispec.Image{}, classified{err, errdefs.ErrInvalidArgument}
	}
	return data, config, nil
}

// namesPlatform reports whether an index entry has a platform.
func namesPlatform(d ocispec.Descriptor) bool {
	return d.Platform != nil && d.Platform.Architecture != ""
}

// forPlatform returns the entries of an index to try in turn: the best one for the platform, or
// else those without a platform, whose configuration decides.
func forPlatform(entries []ocispec.Descriptor, p platforms.MatchComparer) ([]ocispec.Descriptor, error) {
	var fitting, unnamed []ocispec.Descriptor
	var offered []string
	for _, m := range entries {
		switch {
		case m.Annotations["vnd.docker.reference.type"] == "attestation-manifest":
		case !namesPlatform(m):
			unnamed = append(unnamed, m)
		case p.Match(*m.Platform):
			fitting = append(fitting, m)
		default:
			offered = append(offered, platforms.Format(*m.Platform))
		}
	}
	slices.SortStableFunc(fitting, func(a, b ocispec.Descriptor) int {
		if p.Less(*a.Platform, *b.Platform) {
			return -1
		}
		if p.Less(*b.Platform, *a.Platform) {
			return 1
		}
		return 0
	})
	if len(fitting) > 0 {
		return fitting[:1], nil
	}
	if len(unnamed) > 0 {
		return unnamed[:min(len(unnamed), maxUnnamed)], nil
	}
	if len(offered) > maxOffered {
		offered = append(offered[:maxOffered:maxOffered], fmt.Sprintf("%d more", len(offered)-maxOffered))
	}
	return nil, fmt.Errorf("no image for this platform, only for %s: %w", cmp.Or(strings.Join(offered, ", "), "none"), errdefs.ErrNotFound)
}

func checkPlatform(have ocispec.Platform, p platforms.MatchComparer) error {
	if have.Architecture == "" || p.Match(have) {
		return nil
	}
	return fmt.Errorf("image is for %.100s and cannot run on this platform: %w", platforms.Format(have), errdefs.ErrNotFound)
}
