package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

const userAgent = "mica"

const (
	// maxRedirects is the maximum number of redirects of one request, as in net/http and other
	// container runtimes.
	maxRedirects = 10
	// openStalls bounds the time until the content of an answer begins, with all redirects and
	// tokens, in stall time-outs. A cache may take one to fetch the content, a token service
	// another.
	openStalls = 4
)

// host is a client of one host of a repository. It lives as long as the Repository.
type host struct {
	hostConfig
	repository  string // path of the repository, without registry
	registry    string // that the reference names
	credentials credentialSource
	transports  transports
	grants      grants
	plainHTTP   atomic.Bool   // the server was found not to speak TLS; only with tryHTTP
	stall       time.Duration // Options.StallTimeout
}

func newHost(c hostConfig, ref reference.Named, cred credentialSource, stall time.Duration) (*host, error) {
	tlsConfig, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	return &host{
		hostConfig:  c,
		repository:  reference.Path(ref),
		registry:    reference.Domain(ref),
		credentials: cred,
		stall:       stall,
		grants:      grants{byTarget: make(map[string]*grant)},
		transports: transports{
			tls:         tlsConfig,
			dialTimeout: cmp.Or(c.dialTimeout, dialTimeout),
			stall:       stall,
			byRoute:     make(map[route]*http.Transport),
		},
	}, nil
}

func (h *host) close() { h.transports.close() }

// String names the host in errors.
func (h *host) String() string {
	kind := "registry"
	if h.mirror {
		kind = "mirror"
	}
	return kind + " " + h.url("").Host
}

// url returns the URL of path below the API root.
func (h *host) url(path string) *url.URL {
	u := h.base
	u.Path += path
	if h.plainHTTP.Load() {
		u.Scheme = "http"
	}
	if h.mirror {
		// Names the registry to a mirror that serves several, as containerd does.
		u.RawQuery = url.Values{"ns": {h.registry}}.Encode()
	}
	return &u
}

// get sends a request for a path below the repository. The error is a *statusError for an answer
// that is not a success, or an error of the connection or of authentication. The caller closes the
// body.
func (h *host) get(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	return h.open(ctx, func(ctx context.Context) (*http.Response, error) {
		first := func() target { return target{url: h.url("/" + h.repository + path), tls: true} }
		resp, err := h.follow(ctx, request{method, header}, first())
		if err != nil && h.tryHTTP && !h.plainHTTP.Load() && speaksNoTLS(err) {
			h.plainHTTP.Store(true)
			resp, err = h.follow(ctx, request{method, header}, first())
		}
		return resp, err
	})
}

// getURL fetches a foreign layer from a URL in its manifest. It sends no credentials, no client
// certificate and no header of hosts.toml, and always verifies TLS.
func (h *host) getURL(ctx context.Context, address string, header http.Header) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("layer URL is not http or https: %w", errdefs.ErrInvalidArgument)
	}
	return h.open(ctx, func(ctx context.Context) (*http.Response, error) {
		return h.follow(ctx, request{http.MethodGet, header}, target{url: u, led: true, foreign: true})
	})
}

// open bounds the time until f returns an answer, and adds classes to errors. Reading the content
// of the answer may take longer.
func (h *host) open(ctx context.Context, f func(context.Context) (*http.Response, error)) (*http.Response, error) {
	opening, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(openStalls*h.stall, func() { cancel(errStalled) })
	defer timer.Stop()
	resp, err := f(opening)
	if err != nil {
		cancel(nil)
		return nil, classify(ctx, err)
	}
	if resp, err = checkStatus(resp); err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = cancelBody{resp.Body, cancel}
	return resp, nil
}

// cancelBody cancels the context of its request when it is closed.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close implements io.Closer.
func (b cancelBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

func speaksNoTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || errors.Is(err, http.ErrSchemeMismatch) || errors.Is(err, io.EOF)
}
