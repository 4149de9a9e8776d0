package registry

import (
	"net/http"
	"slices"
	"strings"

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

// kind is the kind of a document, by whichever media type it is named.
type kind int

const (
	unknownKind kind = iota
	indexKind
	manifestKind
	schema1Kind
)

// kindOf returns the kind that a media type names, in any case and with any parameters.
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

// isGeneric reports whether servers give a Content-Type to any file.
func isGeneric(mediaType string) bool {
	return slices.Contains([]string{"", "text/plain", "application/json", "application/octet-stream", "binary/octet-stream"}, plainType(mediaType))
}

// isLayerType reports whether a media type names a layer tar with any compression, which the first
// bytes of the layer determine. An encrypted layer is none.
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
