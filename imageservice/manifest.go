package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's image manifest version 2, schemas 1 and 2.
const (
	dockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig        = "application/vnd.docker.container.image.v1+json"
	dockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

func acceptManifests() http.Header {
	return http.Header{"Accept": {ocispec.MediaTypeImageIndex, dockerManifestList, ocispec.MediaTypeImageManifest, dockerManifest, "*/*;q=0.1"}}
}

// kind is what a document is, whichever of the names for it is used.
type kind int

const (
	unknownKind kind = iota
	indexKind
	manifestKind
	schema1Kind
)

// kindOf returns what a media type names. It may have parameters and be in any case.
func kindOf(mediaType string) kind {
	switch plainType(mediaType) {
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		return indexKind
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return manifestKind
	case dockerSchema1, dockerSchema1Signed:
		return schema1Kind
	}
	return unknownKind
}

// plainType returns a media type in lower case and without parameters.
func plainType(mediaType string) string {
	mediaType, _, _ = strings.Cut(mediaType, ";")
	return strings.ToLower(strings.TrimSpace(mediaType))
}

// document is a manifest or an index, decoded and checked.
type document struct {
	manifests []ocispec.Descriptor // of an index
	config    ocispec.Descriptor   // of a manifest
	layers    []ocispec.Descriptor // of a manifest, base to top
	isIndex   bool
	// checkpoint is the name of the container that a manifest says its image is a checkpoint of, and "" where it says nothing.
	checkpoint string
	// chosen says that an index entry named the platform that the manifest is for.
	chosen bool
	// configData is the configuration if choosing the manifest took it.
	configData []byte
}

// rawDocument is a manifest or an index as it is written.
type rawDocument struct {
	specs.Versioned
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	FSLayers  json.RawMessage      `json:"fsLayers"`

	Annotations map[string]string `json:"annotations"`
}

// kind returns what a document that is called mediaType is. Docker's and OCI's names of the same
// kind are mixed up by caches; only what one reader would take for an index and another for a
// manifest is refused, and what is served as something that is neither.
func (raw *rawDocument) kind(mediaType string) (kind, error) {
	called, own := kindOf(mediaType), kindOf(raw.MediaType)
	if raw.SchemaVersion == 1 || raw.FSLayers != nil || called == schema1Kind || own == schema1Kind {
		return 0, fmt.Errorf("image has a manifest of the obsolete Docker schema 1; push it again with a current client: %w", errdefs.ErrNotImplemented)
	}
	foreign := called == unknownKind && !saysNothing(mediaType)
	if own != unknownKind && called != own && (called != unknownKind || foreign) {
		return 0, fmt.Errorf("manifest is served as %s but says that it is %s: %w", mediaType, raw.MediaType, errdefs.ErrInvalidArgument)
	}
	// A document that is both would be read differently by different tools (CVE-2021-41190).
	if raw.Manifests != nil && (raw.Config != nil || raw.Layers != nil) {
		return 0, fmt.Errorf("manifest has both manifests and a configuration or layers: %w", errdefs.ErrInvalidArgument)
	}
	k := max(called, own)
	if k == unknownKind && saysNothing(mediaType) && raw.MediaType == "" {
		if raw.Manifests != nil {
			k = indexKind
		} else if raw.Config != nil {
			k = manifestKind
		}
	}
	switch {
	case k == unknownKind:
		if saysNothing(mediaType) {
			mediaType = raw.MediaType
		}
		return 0, fmt.Errorf("manifest has the unknown media type %q: %w", mediaType, errdefs.ErrNotImplemented)
	case k == indexKind && (raw.Config != nil || raw.Layers != nil), k == manifestKind && raw.Config == nil:
		return 0, fmt.Errorf("content is not what its media type %s says: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	return k, nil
}

// parseDocument decodes a manifest or an index. mediaType is what the registry or the descriptor
// calls it; for "" or a type that says nothing the content decides. Errors:
// errdefs.ErrNotImplemented for what is well formed but not supported, errdefs.ErrInvalidArgument,
// and errdefs.ErrOutOfRange for what exceeds a limit.
func parseDocument(mediaType string, data []byte) (document, error) {
	if err := checkDocument(data, maxManifestSize, manifestLimits()); err != nil {
		return document{}, fmt.Errorf("decode manifest: %w", err)
	}
	var raw rawDocument
	if err := json.Unmarshal(data, &raw); err != nil {
		return document{}, fmt.Errorf("decode manifest: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	k, err := raw.kind(mediaType)
	if err != nil {
		return document{}, err
	}
	if k == indexKind {
		return document{isIndex: true, manifests: raw.Manifests}, checkDescriptors(raw.Manifests)
	}
	d := document{config: *raw.Config, layers: raw.Layers}
	for i := range d.layers {
		d.layers[i].MediaType = plainType(d.layers[i].MediaType)
	}
	for _, key := range checkpointAnnotations() {
		d.checkpoint = orDefault(d.checkpoint, raw.Annotations[key])
	}
	return d, d.checkManifest()
}

// saysNothing tells whether a Content-Type is one that servers give to any file.
func saysNothing(mediaType string) bool {
	return slices.Contains([]string{"", "text/plain", "application/json", "application/octet-stream", "binary/octet-stream"}, plainType(mediaType))
}

func checkDescriptors(list []ocispec.Descriptor) error {
	for _, d := range list {
		if err := d.Digest.Validate(); err != nil {
			return fmt.Errorf("manifest has the digest %q: %w: %w", d.Digest, errdefs.ErrInvalidArgument, err)
		}
		if d.Digest.Algorithm() != digest.SHA256 {
			return fmt.Errorf("manifest has a digest of algorithm %s: %w", d.Digest.Algorithm(), errdefs.ErrNotImplemented)
		}
		if d.Size < 0 {
			return fmt.Errorf("manifest has the size %d of %s: %w", d.Size, d.Digest, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (d document) checkManifest() error {
	if err := checkDescriptors(append([]ocispec.Descriptor{d.config}, d.layers...)); err != nil {
		return err
	}
	switch plainType(d.config.MediaType) {
	case ocispec.MediaTypeImageConfig, dockerConfig, "application/octet-stream", "":
	default:
		return fmt.Errorf("manifest is not that of a container image: its configuration has media type %q: %w", d.config.MediaType, errdefs.ErrNotImplemented)
	}
	if len(d.layers) == 0 {
		return fmt.Errorf("image has no layers: %w", errdefs.ErrInvalidArgument)
	}
	if len(d.layers) > maxLayers {
		return fmt.Errorf("image has %d layers, more than %d: %w", len(d.layers), maxLayers, errdefs.ErrOutOfRange)
	}
	for i, l := range d.layers {
		if !isLayerType(l.MediaType) {
			return fmt.Errorf("layer %d has the unknown media type %q: %w", i+1, l.MediaType, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// isLayerType tells whether a blob of that type is a layer tar, compressed in whatever way: its
// bytes decide that. An encrypted layer is none.
func isLayerType(mediaType string) bool {
	base, suffixes, _ := strings.Cut(mediaType, "+")
	if slices.Contains(strings.Split(suffixes, "+"), "encrypted") {
		return false
	}
	for _, prefix := range []string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		// Docker appends the compression with a dot, as in .tar.gzip.
		if rest, ok := strings.CutPrefix(base, prefix); ok && (rest == "" || rest[0] == '.' && !strings.Contains(rest[1:], ".")) {
			return true
		}
	}
	return false
}

// choose follows indexes from the reference's content to the manifest for our platform.
func (s *source) choose(ctx context.Context, top content, matcher platforms.MatchComparer) (document, error) {
	return s.follow(ctx, top, matcher, 0)
}

// follow is choose at some depth of indexes in each other.
func (s *source) follow(ctx context.Context, c content, matcher platforms.MatchComparer, depth int) (document, error) {
	d, err := parseDocument(c.mediaType, c.data)
	if err != nil || !d.isIndex {
		return d, err
	}
	if depth == maxIndexDepth {
		return document{}, fmt.Errorf("index %s: more than %d indexes in each other: %w", c.digest, maxIndexDepth, errdefs.ErrNotImplemented)
	}
	candidates, err := d.forPlatform(matcher)
	if err != nil {
		return document{}, fmt.Errorf("index %s: %w", c.digest, err)
	}
	for _, next := range candidates {
		d, err = s.entry(ctx, next, matcher, depth)
		if err == nil && !namesPlatform(next) && !d.chosen && len(candidates) > 1 {
			err = s.fits(ctx, &d, matcher)
		}
		if err == nil {
			d.chosen = d.chosen || namesPlatform(next)
			return d, nil
		}
		// Another entry is no better when the registry does not answer.
		if !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) {
			break
		}
	}
	return document{}, err
}

// entry fetches what an index entry stands for and follows it.
func (s *source) entry(ctx context.Context, next ocispec.Descriptor, matcher platforms.MatchComparer, depth int) (document, error) {
	c, err := s.manifest(ctx, next)
	if err != nil {
		return document{}, fmt.Errorf("fetch manifest %s: %w", next.Digest, err)
	}
	if named, is := kindOf(next.MediaType), kindOf(c.mediaType); named != unknownKind && is != unknownKind && named != is {
		return document{}, fmt.Errorf("index entry %s is served as %s, its index says %s: %w", next.Digest, c.mediaType, next.MediaType, errdefs.ErrInvalidArgument)
	}
	return s.follow(ctx, c, matcher, depth+1)
}

// fits fetches the configuration of a manifest whose platform no index entry names, and returns
// errdefs.ErrNotFound when it is for another one.
func (s *source) fits(ctx context.Context, d *document, matcher platforms.MatchComparer) error {
	data, config, err := s.parsedConfig(ctx, *d)
	if err != nil {
		return err
	}
	d.configData = data
	return checkPlatform(config.Platform, matcher)
}

// namesPlatform tells whether an index entry says which platform it is for.
func namesPlatform(d ocispec.Descriptor) bool {
	return d.Platform != nil && d.Platform.Architecture != ""
}

// forPlatform returns the entries of an index to try in turn: the best of those for the platform,
// or else those that name none, whose configuration decides.
func (d document) forPlatform(matcher platforms.MatchComparer) ([]ocispec.Descriptor, error) {
	var fitting, unnamed []ocispec.Descriptor
	var offered []string
	for _, m := range d.manifests {
		switch {
		case m.Annotations["vnd.docker.reference.type"] == "attestation-manifest":
		case !namesPlatform(m):
			unnamed = append(unnamed, m)
		case matcher.Match(*m.Platform):
			fitting = append(fitting, m)
		default:
			offered = append(offered, platforms.Format(*m.Platform))
		}
	}
	slices.SortStableFunc(fitting, func(a, b ocispec.Descriptor) int {
		if matcher.Less(*a.Platform, *b.Platform) {
			return -1
		}
		if matcher.Less(*b.Platform, *a.Platform) {
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
	return nil, fmt.Errorf("no image for this platform, only for %s: %w", offer(offered), errdefs.ErrNotFound)
}

// offer lists platforms for an error.
func offer(names []string) string {
	const most = 20
	if len(names) > most {
		names = append(names[:most:most], fmt.Sprintf("%d more", len(names)-most))
	}
	return orDefault(strings.Join(names, ", "), "none")
}

// checkConfig tells whether a configuration belongs to a manifest and can run on our platform.
// Where an index entry named the platform, that entry has decided: build tools copy a wrong
// architecture into the configuration. A configuration without architecture says nothing.
func (d document) checkConfig(config ocispec.Image, matcher platforms.MatchComparer) error {
	if len(config.RootFS.DiffIDs) != len(d.layers) {
		return fmt.Errorf("configuration has %d layers, manifest has %d: %w", len(config.RootFS.DiffIDs), len(d.layers), errdefs.ErrInvalidArgument)
	}
	if d.chosen {
		return nil
	}
	return checkPlatform(config.Platform, matcher)
}

func checkPlatform(p ocispec.Platform, matcher platforms.MatchComparer) error {
	if p.Architecture == "" || matcher.Match(p) {
		return nil
	}
	return fmt.Errorf("image is for %.100s and cannot run on this platform: %w", platforms.Format(p), errdefs.ErrNotFound)
}
