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

// maxIndexDepth is how many indexes may stand in each other on the way to a manifest.
const maxIndexDepth = 3

// maxLayers is how many layers an image may have; overlayfs takes 500 lower directories.
const maxLayers = 500

func acceptManifests() http.Header {
	return http.Header{"Accept": {ocispec.MediaTypeImageIndex, dockerManifestList, ocispec.MediaTypeImageManifest, dockerManifest, "*/*;q=0.1"}}
}

// document is a manifest or an index, decoded and checked.
type document struct {
	manifests []ocispec.Descriptor // of an index
	config    ocispec.Descriptor   // of a manifest
	layers    []ocispec.Descriptor // of a manifest, base to top
	isIndex   bool
	// checkpoint is the name of the container that a manifest says its image is a checkpoint of, and "" where it says nothing.
	checkpoint string
}

// parseDocument decodes a manifest or an index. mediaType is what the registry or the descriptor calls it; "" or a type that says nothing
// lets the content tell. Errors: errdefs.ErrNotImplemented for what is well formed but not supported, errdefs.ErrInvalidArgument.
func parseDocument(mediaType string, data []byte) (document, error) {
	var raw struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		FSLayers  json.RawMessage      `json:"fsLayers"`

		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return document{}, fmt.Errorf("decode manifest: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if saysNothing(mediaType) {
		mediaType = raw.MediaType
	} else if raw.MediaType != "" && raw.MediaType != mediaType {
		return document{}, fmt.Errorf("manifest is served as %s but says that it is %s: %w", mediaType, raw.MediaType, errdefs.ErrInvalidArgument)
	}
	if raw.SchemaVersion == 1 || raw.FSLayers != nil || mediaType == dockerSchema1 || mediaType == dockerSchema1Signed {
		return document{}, fmt.Errorf("image has a manifest of the obsolete Docker schema 1; push it again with a current client: %w", errdefs.ErrNotImplemented)
	}
	// A document that is both would be read differently by different tools (CVE-2021-41190).
	if raw.Config != nil && raw.Manifests != nil {
		return document{}, fmt.Errorf("manifest has both a configuration and manifests: %w", errdefs.ErrInvalidArgument)
	}
	isIndex := mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerManifestList || mediaType == "" && raw.Manifests != nil
	isManifest := mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest || mediaType == "" && raw.Config != nil
	switch {
	case isIndex && raw.Config == nil:
		return document{isIndex: true, manifests: raw.Manifests}, checkDescriptors(raw.Manifests)
	case isManifest && raw.Config != nil:
		d := document{config: *raw.Config, layers: raw.Layers}
		for _, key := range checkpointAnnotations() {
			d.checkpoint = orDefault(d.checkpoint, raw.Annotations[key])
		}
		return d, d.checkManifest()
	case isIndex || isManifest:
		return document{}, fmt.Errorf("content is not what its media type %s says: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	return document{}, fmt.Errorf("manifest has the unknown media type %q: %w", mediaType, errdefs.ErrNotImplemented)
}

// saysNothing tells whether a Content-Type is one that servers give to any file.
func saysNothing(mediaType string) bool {
	return slices.Contains([]string{"", "text/plain", "application/json", "application/octet-stream", "binary/octet-stream"}, mediaType)
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
	switch d.config.MediaType {
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

// isLayerType tells whether a blob of that type is a layer tar, compressed or not. How it is compressed is told by its bytes.
func isLayerType(mediaType string) bool {
	base, suffix, _ := strings.Cut(mediaType, "+")
	for _, prefix := range []string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		rest, ok := strings.CutPrefix(base, prefix)
		if ok && slices.Contains([]string{"", ".gzip", ".zstd"}, rest) && slices.Contains([]string{"", "gzip", "zstd"}, suffix) {
			return true
		}
	}
	return false
}

// choose follows indexes from the reference's content to the manifest for our platform.
func (s *source) choose(ctx context.Context, top content, matcher platforms.MatchComparer) (document, error) {
	c := top
	for range maxIndexDepth + 1 {
		d, err := parseDocument(c.mediaType, c.data)
		if err != nil || !d.isIndex {
			return d, err
		}
		next, err := d.forPlatform(matcher)
		if err != nil {
			return document{}, fmt.Errorf("index %s: %w", c.digest, err)
		}
		if c, err = s.manifest(ctx, next); err != nil {
			return document{}, fmt.Errorf("fetch manifest %s: %w", next.Digest, err)
		}
		if saysNothing(c.mediaType) {
			c.mediaType = next.MediaType
		}
	}
	return document{}, fmt.Errorf("index %s: more than %d indexes in each other: %w", top.digest, maxIndexDepth, errdefs.ErrNotImplemented)
}

// forPlatform returns the best entry of an index. Entries that name no platform are second choice: their configuration tells later.
func (d document) forPlatform(matcher platforms.MatchComparer) (ocispec.Descriptor, error) {
	var fitting, unnamed []ocispec.Descriptor
	var offered []string
	for _, m := range d.manifests {
		switch {
		case m.Annotations["vnd.docker.reference.type"] == "attestation-manifest":
		case m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "":
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
	if all := append(fitting, unnamed...); len(all) > 0 {
		return all[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for this platform, only for %s: %w", orDefault(strings.Join(offered, ", "), "none"), errdefs.ErrNotFound)
}

// checkConfig tells whether a configuration belongs to a manifest and can run on our platform.
func (d document) checkConfig(config ocispec.Image, matcher platforms.MatchComparer) error {
	if len(config.RootFS.DiffIDs) != len(d.layers) {
		return fmt.Errorf("configuration has %d layers, manifest has %d: %w", len(config.RootFS.DiffIDs), len(d.layers), errdefs.ErrInvalidArgument)
	}
	p := config.Platform
	if p.OS == "" && p.Architecture == "" {
		return nil
	}
	if !matcher.Match(p) {
		return fmt.Errorf("image is for %s and cannot run on this platform: %w", platforms.Format(p), errdefs.ErrNotFound)
	}
	return nil
}
