package imageservice

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/userid"
)

// Image is what the store keeps in memory of an image; the configuration stays on disk, see
// [Service.Detail]. It is a value: the store never changes one that it handed out, and callers must
// not change its slices.
type Image struct {
	ID      digest.Digest   // digest of the configuration
	Tags    []string        // full references with tag, such as docker.io/library/busybox:latest, sorted
	Digests []string        // full references with manifest digest, sorted
	Layers  []digest.Digest // chain IDs, base to top
	Size    int64           // bytes of all layers, uncompressed, as dockerd counts them
	Created time.Time       // the configuration's; zero when it has none
	User    string          // the configuration's, as it stands there: user, UID, or either with a group
	Pinned  bool            // matches Options.Pinned
	// Checkpoint says that the image is that of a checkpointed container: its one layer is a checkpoint archive, and a manifest said so.
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

// UserOrUID returns the configuration's user: a numeric one as uid, any other as name. Both are
// empty when the image sets none. A number that no user can have is returned as name: no container
// can be created of it. The group part is not returned.
func (i Image) UserOrUID() (uid *int64, name string) {
	user, _, _ := strings.Cut(i.User, ":")
	if id, numeric, err := userid.Parse(user); numeric && err == nil {
		n := int64(id)
		return &n, ""
	}
	return nil, user
}

// Dangling tells whether no tag names the image.
func (i Image) Dangling() bool { return len(i.Tags) == 0 }

// chainIDs returns the chain ID of each layer, base to top.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}
