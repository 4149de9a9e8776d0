package imageservice

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of the store. It is a value: the store never changes one that it handed out, and callers must not change its slices.
type Image struct {
	ID      digest.Digest   // digest of the configuration
	Tags    []string        // full references with tag, such as docker.io/library/busybox:latest, sorted
	Digests []string        // full references with manifest digest, sorted
	Config  ocispec.Image   // decoded configuration
	Layers  []digest.Digest // chain IDs, base to top
	Size    int64           // bytes of all layers, uncompressed, as dockerd counts them
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

// User splits the configuration's user. A numeric user is returned as uid, any other as name; both are empty when the image sets
// none. The group part is not returned.
func (i Image) User() (uid *int64, name string) {
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if n, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &n, ""
	}
	return nil, user
}

// Dangling tells whether no tag names the image.
func (i Image) Dangling() bool { return len(i.Tags) == 0 }

// Created returns the configuration's creation time, zero when it has none.
func (i Image) Created() time.Time {
	if i.Config.Created == nil {
		return time.Time{}
	}
	return *i.Config.Created
}

// parseConfig decodes an image configuration and checks what makes it one.
func parseConfig(data []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("decode image configuration: %w", err)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, fmt.Errorf("image configuration has a root file system of type %q, not of layers", c.RootFS.Type)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return c, fmt.Errorf("image configuration has the diff ID %q, which is not a sha256 digest", d)
		}
	}
	return c, nil
}

// chainIDs returns the chain ID of each layer, base to top.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}
