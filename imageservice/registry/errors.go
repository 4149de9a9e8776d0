package registry

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
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// hostErrors has the error of each host that was tried. Its class is the class of the last error,
// which is the registry's own.
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

// statusError is an answer with a status that is not a success.
type statusError struct {
	method, url string
	code        int
	message     string
	retryAfter  time.Duration // 0: the answer asks for no pause
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s %s: %d %s", e.method, e.url, e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// Unwrap returns the class of the status.
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

// checkStatus returns an answer that is a success. It closes any other answer and returns a
// *statusError.
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
	// A body in another form than the distribution specification's adds nothing to the status.
	if json.NewDecoder(io.LimitReader(resp.Body, 16<<10)).Decode(&body) == nil && len(body.Errors) > 0 {
		e.message = body.Errors.Error()
	}
	return nil, e
}

// retryAfter reads both forms of the header, RFC 9110 section 10.2.3.
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

// classified adds a class of errdefs to an error without changing its text.
type classified struct {
	error
	class error
}

func (c classified) Unwrap() []error { return []error{c.error, c.class} }

// classify adds a class to the error of a request without an answer. If the caller has cancelled
// the request, the error keeps the cause.
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

// transferError adds a class to the error of a body. A stalled transfer may be resumed. If the
// caller has cancelled it, the result is the cause.
func transferError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	} else if cause != nil {
		err = cause
	}
	return classified{fmt.Errorf("transfer: %w", err), errdefs.ErrUnavailable}
}

// corrupt returns the error of content that differs from its descriptor.
func corrupt(format string, args ...any) error {
	return classified{fmt.Errorf(format, args...), errdefs.ErrDataLoss}
}

// withoutQuery makes a URL fit for an error that users see. Storage to which registries redirect
// has credentials in the query.
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

// transient reports whether the same request may succeed later.
func transient(err error) bool { return errdefs.IsUnavailable(err) }
