package imageservice

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// relayPath begins the path of a URL that stands for a token service.
const relayPath = "/.mica-token-service/"

// realmRelay lets a registry have its token service anywhere in the operator's network.
//
// The client library refuses a token service of a private address under another name than the registry's, which is what GitLab and Harbor on premises
// have. So the relay makes a realm look like a path of the registry in the challenge that the library sees, and sends a request for that path to
// where the realm really is. What stays refused: protocols other than HTTP, plain HTTP for a registry reached over TLS, and link-local
// addresses, where clouds answer metadata to whoever asks.
type realmRelay struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (r realmRelay) RoundTrip(req *http.Request) (*http.Response, error) {
	encoded, ok := strings.CutPrefix(req.URL.Path, relayPath)
	if !ok {
		resp, err := r.next.RoundTrip(req)
		if err == nil && resp.StatusCode == http.StatusUnauthorized {
			relayChallenges(resp)
		}
		return resp, err
	}
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("decode realm: %w", err)
	}
	realm, err := url.Parse(string(data))
	if err != nil {
		return nil, fmt.Errorf("parse realm: %w", err)
	}
	query := realm.Query()
	for k, v := range req.URL.Query() {
		query[k] = v
	}
	realm.RawQuery = query.Encode()
	relayed := req.Clone(req.Context())
	relayed.URL, relayed.Host = realm, ""
	resp, err := r.next.RoundTrip(relayed)
	if err != nil {
		return nil, fmt.Errorf("token service %s: %w", realm.Host, err)
	}
	relayLocation(resp, realm, req.URL)
	return resp, nil
}

// relayLocation makes a redirect of the token service independent of the URL that the library believes to have asked. One to the same host is relayed too.
func relayLocation(resp *http.Response, realm, registry *url.URL) {
	location := resp.Header.Get("Location")
	u, err := realm.Parse(location)
	if location == "" || err != nil {
		return
	}
	if u.Scheme == realm.Scheme && u.Host == realm.Host {
		u = relayURL(u, registry)
	}
	resp.Header.Set("Location", u.String())
}

// relayURL is the path of the registry that stands for a realm.
func relayURL(realm, registry *url.URL) *url.URL {
	return &url.URL{
		Scheme: registry.Scheme, Host: registry.Host,
		Path: relayPath + base64.RawURLEncoding.EncodeToString([]byte(realm.String())),
	}
}

// relayChallenges rewrites the realms of bearer challenges that may be relayed; the library judges the others.
func relayChallenges(resp *http.Response) {
	pattern := regexp.MustCompile(`(?i)(\brealm=)"([^"]+)"`)
	challenges := resp.Header.Values("WWW-Authenticate")
	for i, c := range challenges {
		if !strings.HasPrefix(strings.ToLower(c), "bearer ") {
			continue
		}
		m := pattern.FindStringSubmatchIndex(c)
		if m == nil {
			continue
		}
		realm, err := url.Parse(c[m[4]:m[5]])
		if err != nil || !mayRelay(realm, resp.Request.URL) {
			continue
		}
		challenges[i] = c[:m[4]] + relayURL(realm, resp.Request.URL).String() + c[m[5]:]
	}
}

func mayRelay(realm, registry *url.URL) bool {
	if realm.Host == "" || realm.Scheme != "https" && (realm.Scheme != "http" || registry.Scheme == "https") {
		return false
	}
	addr, err := netip.ParseAddr(realm.Hostname())
	return err != nil || !addr.Unmap().IsLinkLocalUnicast()
}
