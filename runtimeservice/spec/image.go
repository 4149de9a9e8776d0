package spec

import (
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxImageVolumes bounds the volumes of an image: each costs a directory, a
// mount, and a copy of what the image has there. Images have fewer than ten.
const maxImageVolumes = 128

// ValidateImage checks what an image decides about its containers, before
// anything is made for one. Its errors are ErrInvalidArgument.
func ValidateImage(image ocispec.ImageConfig) error {
	if err := validateImageEnv(image.Env); err != nil {
		return err
	}
	_, err := ImageVolumes(image)
	return err
}

// ImageVolumes returns where an image wants volumes, as clean absolute paths,
// sorted and without duplicates. Relative paths count from the root, and an
// empty one is none. As the container's root filesystem and /proc cannot be
// volumes, they are ErrInvalidArgument, as are more than 128 and paths of more than 4096 bytes. /dev, /sys and what
// is below them can be: the images of systemd have /sys/fs/cgroup.
func ImageVolumes(image ocispec.ImageConfig) ([]string, error) {
	if len(image.Volumes) > maxImageVolumes {
		return nil, invalid("%d volumes of the image, the limit is %d", len(image.Volumes), maxImageVolumes)
	}
	at := map[string]bool{}
	for _, raw := range slices.Sorted(maps.Keys(image.Volumes)) {
		if raw == "" {
			continue
		}
		if len(raw) > maxPath {
			return nil, invalid("volume of the image has a path of %d bytes, more than %d", len(raw), maxPath)
		}
		volume := path.Join("/", raw)
		switch {
		case strings.ContainsRune(raw, 0):
			return nil, invalid("volume %q of the image holds a NUL byte", raw)
		case volume == "/":
			return nil, invalid("volume %q of the image is the root filesystem", raw)
		case volume == "/proc" || strings.HasPrefix(volume, "/proc/"):
			return nil, invalid("volume %q of the image is in /proc, where nothing can be mounted", raw)
		}
		at[volume] = true
	}
	return slices.Sorted(maps.Keys(at)), nil
}
