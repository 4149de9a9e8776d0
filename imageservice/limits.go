package imageservice

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/jsonlimit"
)

// Limits on documents whose size a registry or an image's author decides. Images in use are one to
// three orders of magnitude below them.
const (
	// maxManifestSize is the size in bytes that registries must at least accept, distribution
	// specification v1.1.
	maxManifestSize = 4 << 20
	// maxConfigSize leaves room for a configuration that exposes every port of TCP and UDP: some
	// 1.9 MB.
	maxConfigSize = 2 << 20
	// maxForeignConfigSize is how large a configuration that another engine left may be for its
	// diff IDs to be read.
	maxForeignConfigSize = 32 << 20
	// maxForeignNesting is how deep encoding/json reads, so that no engine can have such an image.
	maxForeignNesting = 10000
	// maxSourcesSize is several times what the maxSources longest sources of a layer take.
	maxSourcesSize = 256 << 10
	// maxDigestSize is more than a digest of any algorithm takes.
	maxDigestSize = 1 << 10

	maxIndexDepth = 3    // indexes in each other on the way to a manifest
	maxManifests  = 1024 // entries of an index; there are some 50 platforms
	maxUnnamed    = 8    // entries without a platform whose configuration is looked at
	maxLayers     = 500  // layers of an image; overlayfs takes 500 lower directories
	maxURLs       = 64   // places of one foreign layer
	maxEntries    = 4096 // of any other list: variables, arguments, labels, history
	maxPorts      = 1 << 17
	maxVolumes    = 1024
	maxUserLength = 1024 // bytes of the user and group that a process runs as
	maxDigests    = 256  // manifest digests that the node remembers for one image of one repository

	maxNesting      = 32      // of arrays and objects; the deepest of the specifications is 5
	maxValues       = 1 << 16 // of a manifest or index
	maxConfigValues = 2*maxPorts + maxValues
)

// configLimits bounds an image configuration.
func configLimits() jsonlimit.Limits {
	list := jsonlimit.Shape{Max: maxEntries}
	return jsonlimit.Limits{Depth: maxNesting, Values: maxConfigValues, Shape: jsonlimit.Shape{
		Distinct: true,
		Members: map[string]jsonlimit.Shape{
			"os": {}, "architecture": {}, "variant": {}, "created": {},
			"os.features": list,
			"history":     list,
			"rootfs":      {Distinct: true, Members: map[string]jsonlimit.Shape{"type": {}, "diff_ids": {Max: maxLayers}}},
			"config": {Distinct: true, Members: map[string]jsonlimit.Shape{
				"User": {}, "WorkingDir": {}, "StopSignal": {}, "Env": list, "Entrypoint": list, "Cmd": list, "Shell": list, "OnBuild": list, "Labels": list,
				"Volumes": {Max: maxVolumes}, "ExposedPorts": {Max: maxPorts},
			}},
		},
	}}
}

// diffIDLimits bounds the part of a configuration that names its layers.
func diffIDLimits() jsonlimit.Limits {
	ids := map[string]jsonlimit.Shape{"diff_ids": {Max: maxLayers}}
	return jsonlimit.Limits{Depth: maxForeignNesting, Values: maxForeignConfigSize, Shape: jsonlimit.Shape{
		Members: map[string]jsonlimit.Shape{"rootfs": {Members: ids}},
	}}
}

// manifestLimits bounds a manifest or index.
func manifestLimits() jsonlimit.Limits {
	annotations := jsonlimit.Shape{Max: maxEntries}
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
			"layers":    {Max: maxLayers, Elements: &descriptor},
			"manifests": {Max: maxManifests, Elements: &descriptor},
		},
	}}
}

// checkDocument bounds a document before it is decoded.
func checkDocument(data []byte, size int, l jsonlimit.Limits) error {
	if len(data) > size {
		return fmt.Errorf("%d bytes are larger than the limit of %d: %w", len(data), size, errdefs.ErrOutOfRange)
	}
	return jsonlimit.Check(data, l)
}
