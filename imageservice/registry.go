package imageservice

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	dialTimeout = 15 * time.Second
	tlsTimeout  = 15 * time.Second
	userAgent   = "mica"
)

// host is a client of one place that an image may come from. It lives as long as the pull that it was made for.
type host struct {
	hostConfig
	repository string // path of the repository, without registry
	registry   string // registry that the reference names
	client     *auth.Client
	transport  *http.Transport
	plainHTTP  atomic.Bool   // tryHTTP has found out that the server speaks no TLS
	stall      time.Duration // Options.StallTimeout
}

func newHost(c hostConfig, ref reference.Named, cred auth.CredentialFunc, stall time.Duration) (*host, error) {
	tlsConfig, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: orDefault(c.dialTimeout, dialTimeout), KeepAlive: 30 * time.Second}
	h := &host{
		hostConfig: c,
		repository: reference.Path(ref),
		registry:   reference.Domain(ref),
		stall:      stall,
		transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           dialer.DialContext,
			TLSClientConfig:       tlsConfig,
			TLSHandshakeTimeout:   tlsTimeout,
			ResponseHeaderTimeout: stall,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       30 * time.Second, // for those that another pull's wait for a layer leaves behind
			DisableCompression:    true,
			ReadBufferSize:        64 << 10,
		},
	}
	h.client = &auth.Client{
		Client:     &http.Client{Transport: realmRelay{h.transport}},
		Header:     c.header.Clone(),
		Credential: cred,
		Cache:      auth.NewCache(),
	}
	if h.client.Header.Get("User-Agent") == "" {
		h.client.SetUserAgent(userAgent)
	}
	return h, nil
}

func (h *host) close() { h.transport.CloseIdleConnections() }

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
	ctx = auth.WithScopes(ctx, auth.ScopeRepository(h.repository, auth.ActionPull))
	resp, err := h.send(ctx, method, path, header)
	if err != nil && h.tryHTTP && !h.plainHTTP.Load() && speaksNoTLS(err) {
		h.plainHTTP.Store(true)
		resp, err = h.send(ctx, method, path, header)
	}
	if err != nil {
		return nil, classify(ctx, err)
	}
	return checkStatus(resp)
}

func (h *host) send(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.url("/"+h.repository+path).String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return h.client.Do(req)
}

func speaksNoTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || errors.Is(err, http.ErrSchemeMismatch) || errors.Is(err, io.EOF)
}

// getURL fetches a foreign layer from where its manifest says; no credentials are sent.
func (h *host) getURL(ctx context.Context, address string, header http.Header) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("layer URL %q is not http or https: %w", address, errdefs.ErrInvalidArgument)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", userAgent)
	resp, err := (&http.Client{Transport: h.transport}).Do(req)
	if err != nil {
		return nil, classify(ctx, err)
	}
	return checkStatus(resp)
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
	var token *errcode.ErrorResponse
	switch {
	case errors.As(err, &token):
		return classified{err, statusClass(token.StatusCode)}
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return classified{err, errdefs.ErrUnauthenticated}
	case isCertificateError(err):
		return classified{err, errdefs.ErrFailedPrecondition}
	}
	if op != nil {
		return classified{err, errdefs.ErrUnavailable}
	}
	return classified{err, errdefs.ErrUnauthenticated}
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
