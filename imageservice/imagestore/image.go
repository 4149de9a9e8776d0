package imagestore

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/userid"
)

// Image is the data of an image that the store keeps in memory. The configuration stays on disk;
// see [Store.Detail]. The store never changes an Image that it has returned, and callers must not
// change its slices.
type Image struct {
	ID      digest.Digest   // digest of the configuration
	Tags    []string        // full references with tag, such as docker.io/library/busybox:latest, sorted
	Digests []string        // full references with manifest digest, sorted
	Layers  []digest.Digest // chain IDs, base to top
	Size    int64           // bytes of all layers, uncompressed, as dockerd counts them
	Created time.Time       // from the configuration; zero if it has none
	User    string          // from the configuration, unchanged: user, UID, or either with a group
	Pinned  bool            // matches a pattern of SetPinned
	// Checkpoint means that the image is a checkpoint of a container: its one layer is a checkpoint
	// archive, and its manifest says so.
	Checkpoint bool
}

// Top returns the chain ID of the topmost layer, the parent of a container's writable layer.
func (i Image) Top() digest.Digest {
	if len(i.Layers) == 0 {
		return ""
	}
	return i.Layers[len(i.Layers)-1]
}

// Detailed is an image with its configuration.
type Detailed struct {
	Image
	Config ocispec.Image
}

// UserOrUID returns the user in the configuration: a number as uid, anything else as name. Both are
// empty if the image has no user. A number that is no valid UID is returned as name; no container
// can be created from such an image. The group is not returned.
func (i Image) UserOrUID() (uid *int64, name string) {
	user, _, _ := strings.Cut(i.User, ":")
	if id, numeric, err := userid.Parse(user); numeric && err == nil {
		n := int64(id)
		return &n, ""
	}
	return nil, user
}

// Dangling reports whether the image has no tag.
func (i Image) Dangling() bool { return len(i.Tags) == 0 }

// ChainIDs returns the chain ID of each layer, base to top. It does not change diffIDs.
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}
