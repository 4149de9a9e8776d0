package imageservice

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// parseReference reads a reference as users write it. The result has a tag or a digest: latest is the default tag, and of a tag and a digest
// the digest counts and the tag is dropped, as dockerd does. Error: errdefs.ErrInvalidArgument.
func parseReference(s string) (reference.Named, error) {
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

// idPrefix reads s as an image ID or the beginning of one, with or without sha256:. It returns the hex digits.
func idPrefix(s string) (string, bool) {
	hex := strings.TrimPrefix(s, "sha256:")
	ok := hex != "" && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
	return hex, ok
}

// matchesAny tells whether a reference fits one of the patterns, in its full or familiar form or by its name alone.
func matchesAny(patterns []string, refs ...reference.Named) bool {
	for _, pattern := range patterns {
		for _, ref := range refs {
			for _, form := range []string{ref.String(), reference.FamiliarString(ref), ref.Name(), reference.FamiliarName(ref)} {
				// Validate has refused malformed patterns.
				if ok, _ := path.Match(pattern, form); ok {
					return true
				}
			}
		}
	}
	return false
}
