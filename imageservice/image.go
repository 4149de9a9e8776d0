package imageservice

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
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

// essence is the part of a configuration that the store keeps in memory.
type essence struct {
	Created *time.Time `json:"created"`
	Config  struct {
		User string `json:"User"`
	} `json:"config"`
	RootFS ocispec.RootFS `json:"rootfs"`
}

// parseConfig decodes an image configuration and checks what makes it one.
func parseConfig(data []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := decodeConfig(data, &c); err != nil {
		return ocispec.Image{}, err
	}
	return c, checkConfig(c.Config.User, c.RootFS)
}

// parseEssence is parseConfig for what is kept in memory. It skips the rest without decoding it.
func parseEssence(data []byte) (essence, error) {
	var c essence
	if err := decodeConfig(data, &c); err != nil {
		return essence{}, err
	}
	return c, checkConfig(c.Config.User, c.RootFS)
}

func decodeConfig(data []byte, into any) error {
	err := checkDocument(data, maxConfigSize, configLimits())
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("decode image configuration: %w", err)
	}
	return nil
}

func checkConfig(user string, root ocispec.RootFS) error {
	if len(user) > maxUserLength {
		return fmt.Errorf("user of image configuration has %d bytes, more than %d: %w", len(user), maxUserLength, errdefs.ErrOutOfRange)
	}
	if root.Type != "" && root.Type != "layers" {
		return fmt.Errorf("image configuration has a root file system of type %q, not of layers", root.Type)
	}
	for _, d := range root.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("image configuration has the diff ID %q, which is not a sha256 digest", d)
		}
	}
	return nil
}

// chainIDs returns the chain ID of each layer, base to top.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}
