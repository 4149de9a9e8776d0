package spec

import (
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxImageVolumes bounds the volumes of an image. Each needs a directory, a mount and a copy of the
// image's content. Images have fewer than ten.
const maxImageVolumes = 128

// ValidateImage checks an image's environment, and its volumes together with the mounts that the
// request has. Call it before anything is made for a container. Its errors are ErrInvalidArgument.
func ValidateImage(image ocispec.ImageConfig, mounts []*runtimeapi.Mount) error {
	if err := validateImageEnv(image.Env); err != nil {
		return err
	}
	volumes, err := ImageVolumes(image)
	if err != nil {
		return err
	}
	for _, needed := range []string{"/dev", "/dev/null"} {
		covered := slices.ContainsFunc(mounts, func(m *runtimeapi.Mount) bool { return path.Clean(m.GetContainerPath()) == needed })
		if slices.Contains(volumes, needed) && !covered {
			// runc makes no device files in a /dev that is mounted, and needs /dev/null.
			return invalid("volume %q of the image hides device files", needed)
		}
	}
	return nil
}

// ImageVolumes returns the paths at which an image declares volumes, clean, absolute, sorted and
// without duplicates. Relative paths are relative to the root; empty ones are ignored. It returns
// ErrInvalidArgument for the root file system, /proc and paths below it, which cannot be volumes,
// for more than 128 volumes, and for paths longer than 4096 bytes. /sys and paths below /sys and
// /dev are allowed: systemd images declare /sys/fs/cgroup. ValidateImage refuses /dev.
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
