package imageservice

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const userAgent = "mica"

const (
	// maxRedirects bounds the redirects of one request, as net/http and the other container runtimes do.
	maxRedirects = 10
	// openStalls bounds the time until the content of an answer begins, with all redirects and tokens, in stall time-outs.
	// A cache may take one of them to fetch what it is asked for, a token service another.
	openStalls = 4
)

// host is a client of one place that an image may come from. It lives as long as the pull that it was made for.
type host struct {
	hostConfig
	repository  string // path of the repository, without registry
	registry    string // registry that the reference names
	credentials credentialSource
	transports  transports
	grants      grants
	plainHTTP   atomic.Bool   // tryHTTP has found out that the server speaks no TLS
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
			dialTimeout: orDefault(c.dialTimeout, dialTimeout),
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
		// Tells a mirror that serves several registries which one is meant, as containerd does.
		u.RawQuery = url.Values{"ns": {h.registry}}.Encode()
	}
	return &u
}

// get sends a request for a path below the repository. An answer that is no success is a *statusError; other errors are those of
// the connection and of authentication. The caller closes the body.
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

// getURL fetches a foreign layer from where its manifest says. It sends no credentials, no client certificate and no
// header of hosts.toml, and makes no exception from the verification of TLS.
func (h *host) getURL(ctx context.Context, address string, header http.Header) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("layer URL is not http or https: %w", errdefs.ErrInvalidArgument)
	}
	return h.open(ctx, func(ctx context.Context) (*http.Response, error) {
		return h.follow(ctx, request{http.MethodGet, header}, target{url: u, led: true, foreign: true})
	})
}

// open bounds the time until f has an answer, and gives errors their class. The content of the answer may take longer.
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

// cancelBody ends the context of its request when it is closed.
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

// statusError is an answer of a registry that is no success.
type statusError struct {
	method, url string
	code        int
	message     string
	retryAfter  time.Duration // 0: the answer did not ask for a pause
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s %s: %d %s", e.method, e.url, e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// Unwrap gives the error its class.
func (e *statusError) Unwrap() error { return statusClass(e.code) }

func statusClass(code int) error {
	switch {
	case code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// checkStatus passes successes on and turns anything else into a *statusError.
func checkStatus(resp *http.Response) (*http.Response, error) {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	e := &statusError{
		method: resp.Request.Method, url: withoutQuery(resp.Request.URL.String()), code: resp.StatusCode,
		retryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	var body struct{ Errors errcode.Errors }
	// A body that is not of the distribution specification's form adds nothing to the status.
	if json.NewDecoder(io.LimitReader(resp.Body, 16<<10)).Decode(&body) == nil && len(body.Errors) > 0 {
		e.message = body.Errors.Error()
	}
	return nil, e
}

// retryAfter reads the header in both of its forms, RFC 9110 section 10.2.3.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return min(time.Duration(seconds), 1<<20) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// classified gives an error a class of errdefs without changing its text.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }

// classify gives an error of a request that brought no answer its class. A request that the caller cancelled keeps its error.
func classify(ctx context.Context, err error) error {
	var op *url.Error
	if errors.As(err, &op) {
		op.URL = withoutQuery(op.URL)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	var address *addressError
	switch {
	case op == nil || errors.As(err, &address):
		return err // has its class
	case isCertificateError(err):
		return classified{err, errdefs.ErrFailedPrecondition}
	}
	return classified{err, errdefs.ErrUnavailable}
}

// withoutQuery makes a URL fit for an error that users see: storage that registries redirect to has its credentials in the query.
func withoutQuery(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "a malformed URL"
	}
	u.RawQuery, u.Fragment = "", ""
	return u.Redacted()
}

func isCertificateError(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification)
}

// transient tells whether the same request may succeed a moment later.
func transient(err error) bool { return errdefs.IsUnavailable(err) }
