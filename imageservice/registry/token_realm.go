package registry

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/net/publicsuffix"
)

// tokenService is the realm of a bearer challenge, with the client's permissions.
type tokenService struct {
	url     *url.URL
	route   route
	trusted bool // may get the credentials
}

// withheldError means that the token service got no request.
type withheldError struct{ text string }

func (e *withheldError) Error() string { return e.text }

// Unwrap returns the class of the error.
func (e *withheldError) Unwrap() error { return errdefs.ErrUnauthenticated }

func withheldFrom(realm, registry *url.URL) error {
	return &withheldError{fmt.Sprintf("token service %s does not belong to %s and gets no credentials; token_hosts in hosts.toml may allow it",
		withoutQuery(realm.String()), registry.Host)}
}

// tokenService returns the permissions for a realm that the server of t, or a token service that
// redirects, named. Credentials go to the server itself, to the same host or site over TLS, and to
// servers that hosts.toml lists. Any other service may get a request for an anonymous token.
func (h *host) tokenService(t target, from locality, realm *url.URL) (tokenService, error) {
	s := tokenService{url: realm, route: h.ledRoute(realm, from, h.skipVerify)}
	scheme := strings.ToLower(realm.Scheme)
	isListed := !t.led && listed(h.tokenHosts, realm)
	switch {
	case scheme != "http" && scheme != "https" || realm.Host == "":
		return s, &withheldError{fmt.Sprintf("token service %q is not http or https", withoutQuery(realm.String()))}
	case realm.User != nil:
		return s, &withheldError{fmt.Sprintf("token service %s has credentials in its URL", realm.Host)}
	case isListed:
		s.trusted = true
		s.route = route{nearest: restricted, authority: true, skipVerify: h.skipVerify}
	case scheme == "http" && t.tls:
		return s, &withheldError{fmt.Sprintf("token service %s is of plain http, the registry of https", realm.Host)}
	case origin(realm) == origin(t.url):
		s.trusted = true
		s.route = h.routeTo(t)
	case scheme == "https" && strings.EqualFold(realm.Hostname(), t.url.Hostname()):
		// Ports of loopback belong to different users.
		s.trusted = !isLocalhost(realm.Host)
	case scheme == "https" && sameSite(realm.Hostname(), t.url.Hostname()):
		s.trusted = true
		s.route = h.ledRoute(realm, from, false)
	case scheme == "https" && !t.led && h.credentials.fromCaller() && sameSite(realm.Hostname(), serverName(h.registry)):
		// A mirror passes on the registry's challenge, and the caller's credentials are for the
		// registry.
		s.trusted = true
		s.route = h.ledRoute(realm, from, false)
	}
	return s, nil
}

// serverName returns the host of host:port.
func serverName(hostPort string) string {
	u := url.URL{Host: hostPort}
	return u.Hostname()
}

// sameSite reports whether two names belong to one registrable domain. Addresses, and names without
// a public suffix, are equal only to themselves.
func sameSite(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	siteA, errA := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(a))
	siteB, errB := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(b))
	return errA == nil && errB == nil && siteA == siteB
}
