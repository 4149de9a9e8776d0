package registry

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/imageconfig"
	"github.com/micarun/mica/internal/jsonlimit"
)

// Limits of a manifest or index.
const (
	// maxManifestSize is the size in bytes that registries must at least accept (OCI distribution
	// specification v1.1).
	maxManifestSize = 4 << 20

	maxManifests   = 1024    // entries of an index; there are some 50 platforms
	maxURLs        = 64      // URLs of one foreign layer, features of one platform
	maxAnnotations = 4096    // of one descriptor or document
	maxNesting     = 32      // of arrays and objects; the deepest of the specifications is 5
	maxValues      = 1 << 16 // in the whole document
)

func manifestLimits() jsonlimit.Limits {
	annotations := jsonlimit.Shape{Max: maxAnnotations}
	descriptor := jsonlimit.Shape{Distinct: true, Members: map[string]jsonlimit.Shape{
		"mediaType": {}, "digest": {}, "size": {}, "urls": {Max: maxURLs}, "annotations": annotations,
		"platform": {Distinct: true, Members: map[string]jsonlimit.Shape{
			"os": {}, "architecture": {}, "variant": {}, "os.version": {}, "os.features": {Max: maxURLs},
		}},
	}}
	return jsonlimit.Limits{Depth: maxNesting, Values: maxValues, Shape: jsonlimit.Shape{
		Distinct: true,
		Members: map[string]jsonlimit.Shape{
			"schemaVersion": {}, "mediaType": {}, "fsLayers": {}, "annotations": annotations,
			"config":    descriptor,
			"layers":    {Max: imageconfig.MaxLayers, Elements: &descriptor},
			"manifests": {Max: maxManifests, Elements: &descriptor},
		},
	}}
}

// Manifest describes an image for one platform.
type Manifest struct {
	// Digest is the digest of the document for which the reference stands: the manifest itself, or
	// an index that leads to it.
	Digest      digest.Digest
	Config      ocispec.Descriptor   // image configuration
	Layers      []ocispec.Descriptor // base to top, at least one; media types in lower case without parameters
	Annotations map[string]string    // of the manifest itself

	platformNamed bool   // by an index entry
	configData    []byte // the configuration, if choosing the manifest required it; otherwise nil
}

// document is a manifest or an index, decoded and checked.
type document struct {
	isIndex  bool
	entries  []ocispec.Descriptor // of an index
	manifest Manifest             // of a manifest; without Digest
}

// rawDocument is the JSON form of a manifest or an index.
type rawDocument struct {
	specs.Versioned
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	FSLayers  json.RawMessage      `json:"fsLayers"`

	Annotations map[string]string `json:"annotations"`
}

// kind returns the kind of a document that is served as mediaType. Caches mix up Docker's and OCI's
// names of the same kind. Two documents are refused: one that one reader would take for an index
// and another for a manifest, and one that is served as something else.
func (raw *rawDocument) kind(mediaType string) (kind, error) {
	served, own := kindOf(mediaType), kindOf(raw.MediaType)
	if raw.SchemaVersion == 1 || raw.FSLayers != nil || served == schema1Kind || own == schema1Kind {
		return 0, fmt.Errorf("image has a manifest of the obsolete Docker schema 1; push it again with a current client: %w", errdefs.ErrNotImplemented)
	}
	foreign := served == unknownKind && !isGeneric(mediaType)
	if own != unknownKind && served != own && (served != unknownKind || foreign) {
		return 0, fmt.Errorf("manifest is served as %s but says that it is %s: %w", mediaType, raw.MediaType, errdefs.ErrInvalidArgument)
	}
	// Different tools would read a document that is both differently (CVE-2021-41190).
	if raw.Manifests != nil && (raw.Config != nil || raw.Layers != nil) {
		return 0, fmt.Errorf("manifest has both manifests and a configuration or layers: %w", errdefs.ErrInvalidArgument)
	}
	k := max(served, own)
	if k == unknownKind && isGeneric(mediaType) && raw.MediaType == "" {
		if raw.Manifests != nil {
			k = indexKind
		} else if raw.Config != nil {
			k = manifestKind
		}
	}
	switch {
	case k == unknownKind:
		if isGeneric(mediaType) {
			mediaType = raw.MediaType
		}
		return 0, fmt.Errorf("manifest has the unknown media type %q: %w", mediaType, errdefs.ErrNotImplemented)
	case k == indexKind && (raw.Config != nil || raw.Layers != nil), k == manifestKind && raw.Config == nil:
		return 0, fmt.Errorf("content is not what its media type %s says: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	return k, nil
}

// parseDocument decodes a manifest or an index. mediaType is the type by which the registry or the
// descriptor calls it. If that is "" or generic, the content determines the kind. Errors:
// errdefs.ErrNotImplemented for a well-formed document that is not supported,
// errdefs.ErrInvalidArgument, and errdefs.ErrOutOfRange for one that exceeds a limit.
func parseDocument(mediaType string, data []byte) (document, error) {
	if len(data) > maxManifestSize {
		return document{}, fmt.Errorf("decode manifest: %d bytes are larger than the limit of %d: %w", len(data), maxManifestSize, errdefs.ErrOutOfRange)
	}
	if err := jsonlimit.Check(data, manifestLimits()); err != nil {
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
		return document{isIndex: true, entries: raw.Manifests}, checkDescriptors(raw.Manifests)
	}
	m := Manifest{Config: *raw.Config, Layers: raw.Layers, Annotations: raw.Annotations}
	for i := range m.Layers {
		m.Layers[i].MediaType = plainType(m.Layers[i].MediaType)
	}
	return document{manifest: m}, m.check()
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

func (m Manifest) check() error {
	if err := checkDescriptors(append([]ocispec.Descriptor{m.Config}, m.Layers...)); err != nil {
		return err
	}
	switch plainType(m.Config.MediaType) {
	case ocispec.MediaTypeImageConfig, dockerConfig, "application/octet-stream", "":
	default:
		return fmt.Errorf("manifest is not that of a container image: its configuration has media type %q: %w", m.Config.MediaType, errdefs.ErrNotImplemented)
	}
	if len(m.Layers) == 0 {
		return fmt.Errorf("image has no layers: %w", errdefs.ErrInvalidArgument)
	}
	if len(m.Layers) > imageconfig.MaxLayers {
		return fmt.Errorf("image has %d layers, more than %d: %w", len(m.Layers), imageconfig.MaxLayers, errdefs.ErrOutOfRange)
	}
	for i, l := range m.Layers {
		if !isLayerType(l.MediaType) {
			return fmt.Errorf("layer %d has the unknown media type %q: %w", i+1, l.MediaType, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
