package imagestore

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// ParseReference parses a reference as users write it. The result has either a tag, by default
// latest, or a digest. If the reference has both, the tag is dropped, as in dockerd. Errors:
// errdefs.ErrInvalidArgument, and errdefs.ErrNotImplemented for a digest other than sha256.
func ParseReference(s string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("parse image reference %q: %w: %w", s, errdefs.ErrInvalidArgument, err)
	}
	canonical, ok := named.(reference.Canonical)
	if !ok {
		return reference.TagNameOnly(named), nil
	}
	if canonical.Digest().Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("parse image reference %q: digest algorithm %s: %w", s, canonical.Digest().Algorithm(), errdefs.ErrNotImplemented)
	}
	return withDigest(canonical, canonical.Digest())
}

// withDigest returns name@d.
func withDigest(name reference.Named, d digest.Digest) (reference.Canonical, error) {
	c, err := reference.WithDigest(reference.TrimNamed(name), d)
	if err != nil {
		return nil, fmt.Errorf("make reference %s@%s: %w: %w", name.Name(), d, errdefs.ErrInvalidArgument, err)
	}
	return c, nil
}

// idPrefix returns the hex digits if s is an image ID or a prefix of one, with or without sha256:.
func idPrefix(s string) (string, bool) {
	hex := strings.TrimPrefix(s, "sha256:")
	ok := hex != "" && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
	return hex, ok
}

// matchesAny reports whether a pattern matches a reference, in its full or familiar form or by its
// name alone.
func matchesAny(patterns []string, refs ...reference.Named) bool {
	for _, pattern := range patterns {
		for _, ref := range refs {
			for _, form := range []string{ref.String(), reference.FamiliarString(ref), ref.Name(), reference.FamiliarName(ref)} {
				// A malformed pattern matches nothing.
				if ok, _ := path.Match(pattern, form); ok {
					return true
				}
			}
		}
	}
	return false
}
