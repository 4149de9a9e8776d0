// Package testimage builds container images for tests and benchmarks from Debian packages, small
// files and C programs of this repository.
//
// It is not an image build tool for users: it runs no package scripts, and an image holds only what
// its description lists. Packages come through the machine's apt client, from the archives that the
// machine is configured for.
//
// Invariants: an image is a pure function of its description, the sources that it names and the
// package versions of the first build. Each layer is built once and found again by a key over all
// of these. Two processes may build into one directory at the same time (a file lock orders them).
//
// On-disk form, in the builder's directory: debs/ (package files fetched by apt), layers/<key>.json
// (the descriptor of a built layer) and lock. Blobs and manifests are in the Store, which belongs
// to the same directory: remove both or neither.
package testimage

import (
	"fmt"
	"path"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image describes one image.
type Image struct {
	// Names are the references of the image, each "repository:tag" without a registry. All refer to
	// the same manifest.
	Names []string
	// Layers are the layers, base first.
	Layers []Layer
	// Config is the image's configuration: command, user, environment.
	Config ocispec.ImageConfig
	// Docker writes a Docker schema 2 manifest instead of an OCI one.
	Docker bool
	// Index wraps the manifest in an index with this and one foreign platform, as in multi-platform
	// images.
	Index bool
}

// Compression is the compression of a layer's tar stream.
type Compression string

// The compressions that registries serve. The zero value is Gzip.
const (
	Gzip         Compression = "gzip"
	Zstd         Compression = "zstd"
	Uncompressed Compression = "none"
)

// Layer describes one layer: packages first, then files.
type Layer struct {
	// Packages are Debian package names. Their dependencies are included unless a layer below has
	// them.
	Packages []string `json:",omitempty"`
	// Only excludes the dependencies: the layer has only the named packages.
	Only bool `json:",omitempty"`
	// Files are written after the packages' files.
	Files []File `json:",omitempty"`
	// Applets adds a hard link to /bin/busybox for every applet that the busybox of this layer's
	// packages has.
	Applets bool `json:",omitempty"`
	// Compression of the layer; empty is Gzip.
	Compression Compression `json:",omitempty"`
}

// File is one entry of a layer. At most one of Content, Symlink, Hardlink, Dir, C and Host is set;
// a File with none of them is an empty file.
type File struct {
	// Path inside the image, absolute.
	Path string
	// Mode are permission bits with setuid (04000), setgid and sticky; 0 is 0644 for files and 0755
	// for directories and programs.
	Mode     int64  `json:",omitempty"`
	UID, GID int    `json:",omitempty"`
	Content  string `json:",omitempty"`
	// Symlink is the target of a symbolic link, Hardlink the absolute path of an entry of the same
	// layer.
	Symlink, Hardlink string `json:",omitempty"`
	Dir               bool   `json:",omitempty"`
	// C is the path of a C source, relative to the module root, to compile to a static program.
	C string `json:",omitempty"`
	// Host is the path of a file of this machine to copy. Only its content matters, not its path.
	Host string `json:"-"`
}

// Built is a finished image.
type Built struct {
	Names []string
	// Manifest is the descriptor that the image's tags refer to: the manifest's, or the index's
	// around it.
	Manifest ocispec.Descriptor
	// ID is the digest of the image's config.
	ID digest.Digest
	// Layers are the descriptors of the packed layers, base first. DiffIDs are the digests of the
	// uncompressed tar streams.
	Layers  []ocispec.Descriptor
	DiffIDs []digest.Digest
}

// Media types of Docker image manifest version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// epoch is the time of all entries that have no time of their own, so that the same description
// gives the same bytes.
func epoch() time.Time { return time.Unix(1735689600, 0).UTC() }

func (i Image) validate() error {
	if len(i.Names) == 0 || len(i.Layers) == 0 {
		return fmt.Errorf("image %v: needs a name and a layer", i.Names)
	}
	for _, name := range i.Names {
		if !strings.Contains(path.Base(name), ":") {
			return fmt.Errorf("image %q: name without a tag", name)
		}
	}
	return nil
}

func (c Compression) mediaType(docker bool) (string, error) {
	if docker && c != Gzip {
		return "", fmt.Errorf("docker schema 2 has no %s layers", c)
	}
	types := map[Compression]string{
		Gzip:         ocispec.MediaTypeImageLayerGzip,
		Zstd:         ocispec.MediaTypeImageLayerZstd,
		Uncompressed: ocispec.MediaTypeImageLayer,
	}
	mediaType, ok := types[c]
	if !ok {
		return "", fmt.Errorf("unknown compression %q", c)
	}
	if docker {
		mediaType = dockerLayer
	}
	return mediaType, nil
}
