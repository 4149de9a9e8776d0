package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/micarun/mica/internal/imageconfig"
)

// digestHeader has the digest of an answer's content (OCI distribution specification v1.1, "Pulling
// manifests").
const digestHeader = "Docker-Content-Digest"

// content is a manifest, index or configuration.
type content struct {
	mediaType string
	digest    digest.Digest
	data      []byte
}

// Probe asks for the digest of the reference without fetching a manifest. It makes one attempt at
// each host. It returns "" if no host answers with a digest.
func (r *Repository) Probe(ctx context.Context) digest.Digest {
	var d digest.Digest
	once := *r
	once.opts.Attempts = 1
	may := func(h *host) bool { return h.resolve }
	err := once.eachHost(ctx, may, func(h *host) error {
		resp, err := h.get(ctx, http.MethodHead, "/manifests/"+tagOrDigest(r.ref), acceptManifests())
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		d = digest.Digest(resp.Header.Get(digestHeader))
		return nil
	}, nil)
	if err != nil || d.Validate() != nil {
		return ""
	}
	return d
}

// tagOrDigest returns the last part of a reference as a manifest's URL has it.
func tagOrDigest(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Canonical:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return ""
}

// manifest fetches the manifest or index of the descriptor, or of the reference if the descriptor
// is empty.
func (r *Repository) manifest(ctx context.Context, want ocispec.Descriptor) (content, error) {
	name := tagOrDigest(r.ref)
	if c, ok := r.ref.(reference.Canonical); ok && want.Digest == "" {
		want.Digest = c.Digest()
	}
	may := func(h *host) bool { return h.resolve }
	if want.Digest != "" {
		name = want.Digest.String()
		may = func(h *host) bool { return h.pull }
	}
	// The next host is asked if this one sends something else, such as a page for people.
	check := func(c *content) error {
		if kindOf(c.mediaType) == unknownKind && want.MediaType != "" {
			c.mediaType = want.MediaType
		}
		_, err := parseDocument(c.mediaType, c.data)
		return err
	}
	return r.fetch(ctx, fetchArgs{path: "/manifests/" + name, want: want, limit: maxManifestSize, header: acceptManifests(), may: may, check: check})
}

// config fetches an image configuration.
func (r *Repository) config(ctx context.Context, want ocispec.Descriptor) (content, error) {
	may := func(h *host) bool { return h.pull }
	return r.fetch(ctx, fetchArgs{path: "/blobs/" + want.Digest.String(), want: want, limit: imageconfig.MaxSize, may: may})
}

// fetchArgs describes a small object to fetch whole.
type fetchArgs struct {
	path   string
	want   ocispec.Descriptor // digest "" and size 0 accept any
	limit  int64              // bytes
	header http.Header
	may    func(*host) bool
	check  func(*content) error // may be nil
}

// fetch fetches and checks a small object. If a host sends something else, that host has failed.
func (r *Repository) fetch(ctx context.Context, a fetchArgs) (content, error) {
	if a.want.Size > a.limit {
		return content{}, fmt.Errorf("%s of %d bytes is larger than the limit of %d: %w", a.want.MediaType, a.want.Size, a.limit, errdefs.ErrOutOfRange)
	}
	var c content
	err := r.eachHost(ctx, a.may, func(h *host) (err error) {
		c, err = h.fetch(ctx, a)
		return err
	}, nil)
	return c, err
}

func (h *host) fetch(ctx context.Context, a fetchArgs) (content, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := h.get(ctx, http.MethodGet, a.path, a.header)
	if err != nil {
		return content{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body := newPaceReader(resp.Body, h.stall, cancel)
	data, err := io.ReadAll(io.LimitReader(body, a.limit+1))
	if err != nil {
		return content{}, transferError(ctx, err)
	}
	c := content{mediaType: mediaTypeOf(resp.Header), digest: digest.FromBytes(data), data: data}
	switch {
	case int64(len(data)) > a.limit:
		return content{}, fmt.Errorf("answer is larger than the limit of %d bytes: %w", a.limit, errdefs.ErrOutOfRange)
	case a.want.Digest != "" && c.digest != a.want.Digest:
		return content{}, corrupt("content has digest %s, not %s", c.digest, a.want.Digest)
	case a.want.Digest == "" && !matchesHeader(resp.Header, data):
		return content{}, corrupt("content has digest %s, its header says %s", c.digest, resp.Header.Get(digestHeader))
	case a.want.Size != 0 && int64(len(data)) != a.want.Size:
		return content{}, corrupt("content has %d bytes, not %d", len(data), a.want.Size)
	}
	if a.check != nil {
		err = a.check(&c)
	}
	return c, err
}

// matchesHeader reports whether data has the digest in an answer's header. Without a valid digest
// there, any data matches.
func matchesHeader(h http.Header, data []byte) bool {
	want := digest.Digest(h.Get(digestHeader))
	return want.Validate() != nil || want == want.Algorithm().FromBytes(data)
}

func mediaTypeOf(h http.Header) string {
	mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.TrimSpace(mediaType)
}
