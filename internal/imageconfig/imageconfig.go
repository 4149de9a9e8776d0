package imageconfig

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/jsonlimit"
)

// Summary is the part of a configuration that the image store keeps in memory.
type Summary struct {
	Created *time.Time `json:"created"`
	Config  struct {
		User string `json:"User"` // user name or UID, either with a group
	} `json:"config"`
	RootFS ocispec.RootFS `json:"rootfs"`
}

// Parse decodes a configuration. errdefs.ErrOutOfRange means that it exceeds a limit,
// errdefs.ErrInvalidArgument that it is ambiguous. Other errors mean that it is no configuration of
// a container image.
func Parse(data []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := decode(data, &c); err != nil {
		return ocispec.Image{}, err
	}
	return c, check(c.Config.User, c.RootFS)
}

// ParseSummary is Parse for a Summary. It decodes nothing else.
func ParseSummary(data []byte) (Summary, error) {
	var c Summary
	if err := decode(data, &c); err != nil {
		return Summary{}, err
	}
	return c, check(c.Config.User, c.RootFS)
}

func decode(data []byte, into any) error {
	var err error
	if len(data) > MaxSize {
		err = fmt.Errorf("%d bytes are larger than the limit of %d: %w", len(data), MaxSize, errdefs.ErrOutOfRange)
	} else {
		err = jsonlimit.Check(data, limits())
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("decode image configuration: %w", err)
	}
	return nil
}

func check(user string, root ocispec.RootFS) error {
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

// DiffIDs returns the layers that a configuration lists, base to top. data has at most
// MaxForeignSize bytes. The result is nil if the list is malformed or has more than MaxLayers
// entries: no engine can have such an image.
func DiffIDs(data []byte) []digest.Digest {
	var c struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if jsonlimit.Check(data, diffIDLimits()) != nil || json.Unmarshal(data, &c) != nil {
		return nil
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Validate() != nil {
			return nil
		}
	}
	return c.RootFS.DiffIDs
}
