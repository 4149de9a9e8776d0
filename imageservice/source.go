package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"
)

// mirrorAttempts is how often a request to a host is tried when there is another host to fall back on.
const mirrorAttempts = 2

// source is where one pull gets its content from: the hosts of a registry, in order.
type source struct {
	ref   reference.Named
	hosts []*host
	opts  Options
}

// newSource reads the registry's configuration. The caller closes the source.
func (s *Service) newSource(ref reference.Named, cred credentialSource) (*source, error) {
	o := *s.options()
	configs, notes, err := findHostsAndNotes(o.CertsDirs, reference.Domain(ref))
	if err != nil {
		return nil, err
	}
	s.hostsSaid.ignored(klog.Background(), notes)
	src := &source{ref: ref, opts: o}
	for _, c := range configs {
		h, err := newHost(c, ref, cred, o.StallTimeout)
		if err != nil {
			src.close()
			return nil, fmt.Errorf("configure host %s: %w", c.base.Host, err)
		}
		src.hosts = append(src.hosts, h)
	}
	return src, nil
}

// registry returns the name of the registry that the reference names.
func (s *source) registry() string { return reference.Domain(s.ref) }

func (s *source) close() {
	for _, h := range s.hosts {
		h.close()
	}
}

// withoutFirst returns the source without the first host that serves blobs, for a retry after that one served something else.
// The hosts stay the property of s.
func (s *source) withoutFirst() *source {
	c := *s
	i := slices.IndexFunc(s.hosts, func(h *host) bool { return h.pull })
	c.hosts = slices.Delete(slices.Clone(s.hosts), max(i, 0), max(i, 0)+1)
	return &c
}

// hostErrors is what each host that was tried said. Its class is that of the last one, which is the registry itself.
type hostErrors []error

func (e hostErrors) Error() string {
	texts := make([]string, 0, len(e))
	for _, err := range e {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the last error.
func (e hostErrors) Unwrap() error { return e[len(e)-1] }

// eachHost calls f for the hosts that may, in order, until one call succeeds. Transient failures are repeated with growing pauses: on the last host
// as often as the options say, on the others less, because there is another to turn to. progressed, which may be nil, tells
// whether the last call got further than the one before; it then does not count.
func (s *source) eachHost(ctx context.Context, may func(*host) bool, f func(*host) error, progressed func() bool) error {
	var hosts []*host
	for _, h := range s.hosts {
		if may(h) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return fmt.Errorf("no host of registry %s has the capability: %w", reference.Domain(s.ref), errdefs.ErrFailedPrecondition)
	}
	var failures hostErrors
	for i, h := range hosts {
		attempts := s.opts.Attempts
		if i < len(hosts)-1 {
			attempts = min(attempts, mirrorAttempts)
		}
		err := s.repeat(ctx, attempts, func() error { return f(h) }, progressed)
		if err == nil {
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", h, err))
		if ctx.Err() != nil {
			break
		}
	}
	return failures
}

// repeat calls f until it succeeds, fails for good, or has failed attempts times in succession.
func (s *source) repeat(ctx context.Context, attempts int, f func() error, progressed func() bool) error {
	backoff := s.opts.Backoff
	for failed := 0; ; {
		err := f()
		if err == nil || ctx.Err() != nil || !transient(err) {
			return err
		}
		if progressed != nil && progressed() {
			failed, backoff = 0, s.opts.Backoff
		}
		failed++
		if failed >= attempts {
			if failed > 1 {
				err = fmt.Errorf("given up after %d attempts: %w", failed, err)
			}
			return err
		}
		pause := backoff/2 + rand.N(backoff/2+1)
		var status *statusError
		if errors.As(err, &status) && status.retryAfter > 0 {
			if status.retryAfter > s.opts.MaxBackoff {
				return fmt.Errorf("asked to come back after %s, later than this pull waits: %w", status.retryAfter, err)
			}
			pause = max(pause, status.retryAfter)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		backoff = min(2*backoff, s.opts.MaxBackoff)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// content is a manifest, index or configuration.
type content struct {
	mediaType string
	digest    digest.Digest
	data      []byte
}

// probe asks, once, for the digest of the reference without fetching anything. It returns "" when the registry does not tell.
func (s *source) probe(ctx context.Context) digest.Digest {
	var d digest.Digest
	once := *s
	once.opts.Attempts = 1
	may := func(h *host) bool { return h.resolve }
	err := once.eachHost(ctx, may, func(h *host) error {
		resp, err := h.get(ctx, http.MethodHead, "/manifests/"+tagOrDigest(s.ref), acceptManifests())
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

// manifest fetches the manifest or index that the reference, or want when it is not empty, stands for.
func (s *source) manifest(ctx context.Context, want ocispec.Descriptor) (content, error) {
	name, limit := tagOrDigest(s.ref), int64(maxManifestSize)
	if c, ok := s.ref.(reference.Canonical); ok && want.Digest == "" {
		want.Digest = c.Digest()
	}
	may := func(h *host) bool { return h.resolve }
	if want.Digest != "" {
		name = want.Digest.String()
		may = func(h *host) bool { return h.pull }
	}
	// A host that serves something else, such as a page for people, is passed over.
	check := func(c *content) error {
		if kindOf(c.mediaType) == unknownKind && want.MediaType != "" {
			c.mediaType = want.MediaType
		}
		_, err := parseDocument(c.mediaType, c.data)
		return err
	}
	return s.fetch(ctx, fetchArgs{path: "/manifests/" + name, want: want, limit: limit, header: acceptManifests(), may: may, check: check})
}

// config fetches an image configuration.
func (s *source) config(ctx context.Context, want ocispec.Descriptor) (content, error) {
	may := func(h *host) bool { return h.pull }
	return s.fetch(ctx, fetchArgs{path: "/blobs/" + want.Digest.String(), want: want, limit: maxConfigSize, may: may})
}

// fetchArgs says which small object to fetch whole.
type fetchArgs struct {
	path   string
	want   ocispec.Descriptor // digest "" and size 0 accept any
	limit  int64              // bytes
	header http.Header
	may    func(*host) bool
	check  func(*content) error // may be nil
}

// fetch gets a small object and checks it. An object that is not what was asked for counts as the host's failure.
func (s *source) fetch(ctx context.Context, a fetchArgs) (content, error) {
	if a.want.Size > a.limit {
		return content{}, fmt.Errorf("%s of %d bytes is larger than the limit of %d: %w", a.want.MediaType, a.want.Size, a.limit, errdefs.ErrOutOfRange)
	}
	var c content
	err := s.eachHost(ctx, a.may, func(h *host) (err error) {
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
	case a.want.Digest == "" && !matches(resp.Header, data):
		return content{}, corrupt("content has digest %s, its header says %s", c.digest, resp.Header.Get(digestHeader))
	case a.want.Size != 0 && int64(len(data)) != a.want.Size:
		return content{}, corrupt("content has %d bytes, not %d", len(data), a.want.Size)
	}
	if a.check != nil {
		err = a.check(&c)
	}
	return c, err
}

// digestHeader is how a registry says what it sends (OCI distribution specification v1.1, "Pulling manifests").
const digestHeader = "Docker-Content-Digest"

// matches tells whether data is what the answer's header says; an answer that says nothing is taken as it is.
func matches(h http.Header, data []byte) bool {
	told := digest.Digest(h.Get(digestHeader))
	return told.Validate() != nil || told == told.Algorithm().FromBytes(data)
}

// corrupt is the error of content that is not what its descriptor says.
func corrupt(format string, args ...any) error {
	return classified{fmt.Errorf(format, args...), errdefs.ErrDataLoss}
}

func mediaTypeOf(h http.Header) string {
	mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.TrimSpace(mediaType)
}
