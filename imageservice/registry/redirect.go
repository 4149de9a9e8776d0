package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxDiscard is the number of bytes of an unused body that are read, so that the connection can
	// be used again.
	maxDiscard = 4 << 10
	// discardTimeout bounds the time for them. A new connection takes less time than a slow body.
	discardTimeout = time.Second
)

// request is the part of a request that redirects do not change.
type request struct {
	method string
	header http.Header
}

// target is a URL to request, and who named it.
type target struct {
	url     *url.URL
	led     bool     // another server named the URL by a redirect, or a manifest did
	foreign bool     // a manifest named the first URL: nothing of the host's configuration applies
	from    locality // of the server that named the URL; only for led and not foreign
	tls     bool     // no URL so far is plain HTTP
}

// follow sends a request and follows redirects. It authenticates to each server as the server
// requests and as far as the target permits.
func (h *host) follow(ctx context.Context, r request, t target) (*http.Response, error) {
	for range maxRedirects + 1 {
		t.tls = t.tls && t.url.Scheme == "https"
		resp, from, err := h.ask(ctx, r, t)
		if err != nil {
			return nil, err
		}
		next, err := redirectOf(resp)
		if next == nil && err == nil {
			return resp, nil
		}
		discard(resp)
		if err != nil {
			return nil, err
		}
		t = t.redirected(next, from)
	}
	return nil, fmt.Errorf("%s %s: more than %d redirects: %w", r.method, withoutQuery(t.url.String()), maxRedirects, errdefs.ErrUnknown)
}

// redirected returns the target of a redirect. A chain of redirects that has left the host and
// leads back to it stays led, because another server chose the URL.
func (t target) redirected(next *url.URL, from locality) target {
	sameOrigin := origin(next) == origin(t.url)
	t.led = t.led || !sameOrigin
	t.url = next
	if t.led {
		t.from = from
	}
	return t
}

// redirectOf returns the URL to which an answer redirects, nil if it does not.
func redirectOf(resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	u, err := resp.Location()
	if errors.Is(err, http.ErrNoLocation) {
		return nil, nil
	}
	where := fmt.Sprintf("%s %s", resp.Request.Method, withoutQuery(resp.Request.URL.String()))
	if err != nil {
		return nil, fmt.Errorf("%s: redirected to a malformed URL: %w", where, errdefs.ErrUnknown)
	}
	u.Scheme = strings.ToLower(u.Scheme)
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s: redirected to %q, which is not http or https: %w", where, u.Scheme, errdefs.ErrUnknown)
	}
	return u, nil
}

// ask sends one request. If the server requests authentication, ask authenticates and sends the
// request again.
func (h *host) ask(ctx context.Context, r request, t target) (*http.Response, locality, error) {
	if t.foreign {
		return h.send(ctx, r, t, "")
	}
	g := h.grants.of(t)
	used := g.current()
	resp, from, err := h.send(ctx, r, t, used)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, from, err
	}
	value, err := h.authorize(ctx, authorizeArgs{target: t, grant: g, used: used, from: from, challenges: challengesOf(resp.Header)})
	if err != nil {
		discard(resp)
		return nil, from, fmt.Errorf("%s %s: %w", r.method, withoutQuery(t.url.String()), err)
	}
	if value == "" {
		return resp, from, nil
	}
	discard(resp)
	return h.send(ctx, r, t, value)
}

// send sends one request. Headers of hosts.toml go to the host only.
func (h *host) send(ctx context.Context, r request, t target, authorization string) (*http.Response, locality, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, t.url.String(), nil)
	if err != nil {
		return nil, public, err
	}
	if !t.led {
		req.Header = h.ownHeader()
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", userAgent)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return h.transports.roundTrip(req, h.routeTo(t))
}

// ownHeader returns a copy of the header of hosts.toml.
func (h *host) ownHeader() http.Header {
	if h.header == nil {
		return make(http.Header)
	}
	return h.header.Clone()
}

func (h *host) routeTo(t target) route {
	switch {
	case !t.led:
		return route{own: true, nearest: restricted}
	case t.foreign && listed(h.layerHosts, t.url):
		return route{nearest: restricted}
	case t.foreign:
		return route{nearest: public}
	case listed(h.layerHosts, t.url):
		return route{nearest: restricted, authority: true, skipVerify: h.skipVerify}
	}
	return h.ledRoute(t.url, t.from, h.skipVerify)
}

// listed reports whether a list in hosts.toml names the server of a URL.
func listed(list []string, u *url.URL) bool {
	return slices.ContainsFunc(list, func(entry string) bool {
		e, err := serverURL(entry)
		return err == nil && origin(e) == origin(u)
	})
}

// discard closes the body of an answer. It reads a small body to its end first, so that the
// connection can be used again.
func discard(resp *http.Response) {
	timer := time.AfterFunc(discardTimeout, func() { _ = resp.Body.Close() })
	_, _ = io.CopyN(io.Discard, resp.Body, maxDiscard)
	timer.Stop()
	_ = resp.Body.Close()
}
