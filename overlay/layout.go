package overlay

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Names inside a directory of overlay2.
const (
	diffName      = "diff"
	linkName      = "link"
	lowerName     = "lower"
	workName      = "work"
	mergedName    = "merged"
	committedName = "committed"
	linksName     = "l"
	initSuffix    = "-init"
	shadowName    = "shadow" // only in a draft: files that later entries of the same tar replaced
)

// Names inside an entry of layerdb.
const (
	cacheIDName  = "cache-id"
	diffIDName   = "diff"
	parentName   = "parent"
	sizeName     = "size"
	tarSplitName = "tar-split.json.gz"
	mountIDName  = "mount-id"
	initIDName   = "init-id"
	writeSet     = "write-set-"
)

// layout returns the paths of a store.
type layout struct{ root string }

func (l layout) overlay() string           { return filepath.Join(l.root, "overlay2") }
func (l layout) dir(id string) string      { return filepath.Join(l.root, "overlay2", id) }
func (l layout) diff(id string) string     { return filepath.Join(l.root, "overlay2", id, diffName) }
func (l layout) links() string             { return filepath.Join(l.root, "overlay2", linksName) }
func (l layout) layerdb() string           { return filepath.Join(l.root, "image", "overlay2", "layerdb") }
func (l layout) layers() string            { return filepath.Join(l.layerdb(), "sha256") }
func (l layout) mounts() string            { return filepath.Join(l.layerdb(), "mounts") }
func (l layout) tmp() string               { return filepath.Join(l.layerdb(), "tmp") }
func (l layout) writeSet(id string) string { return filepath.Join(l.tmp(), writeSet+id) }
func (l layout) mount(id string) string    { return filepath.Join(l.mounts(), id) }

func (l layout) layer(chain digest.Digest) string {
	return filepath.Join(l.layers(), chain.Encoded())
}

// names match the forms of the names that this package gives. It removes only directories with such
// names.
type names struct{ directory, link, hex *regexp.Regexp }

func newNames() names {
	return names{
		directory: regexp.MustCompile(`^[0-9a-f]{64}(-init)?$`),
		link:      regexp.MustCompile(`^[A-Z2-7]{26}$`),
		hex:       regexp.MustCompile(`^[0-9a-f]{64}$`),
	}
}

// newID returns a random name for a directory of overlay2: 64 hexadecimal characters.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// newLink returns a random short name: 26 characters of A–Z and 2–7.
func newLink() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])
}

// chainID computes a layer's chain ID from its parent's chain ID (image-spec, "Layer ChainID").
func chainID(parent, diffID digest.Digest) digest.Digest {
	if parent == "" {
		return diffID
	}
	return digest.FromString(parent.String() + " " + diffID.String())
}

// checkID refuses an ID of a writable layer that is no valid file name.
func checkID(id string) error {
	if id == "" || len(id) > 128 || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("writable layer %q: bad ID: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}
