package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// maxTokenSize bounds the answer of a token service in bytes. It has one token at most twice, and
// servers accept headers of 16 KiB.
const maxTokenSize = 128 << 10

// tokenStalls bounds a request for a token, with all redirects, in stall time-outs.
const tokenStalls = 2

// grants are the Authorization headers that servers have accepted.
type grants struct {
	mu       sync.Mutex // guards the map
	byTarget map[string]*grant
}

// grant is the Authorization header for one server.
type grant struct {
	renewing chan struct{} // has an element while a request gets a new value

	mu    sync.Mutex // guards value
	value string     // "": the server has not requested one yet
}

// of returns the grant for a target. A server that hosts.toml or the reference names, and the same
// server as the target of a redirect, have separate grants.
func (g *grants) of(t target) *grant {
	key := fmt.Sprint(origin(t.url), " ", t.led)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byTarget[key] == nil {
		g.byTarget[key] = &grant{renewing: make(chan struct{}, 1)}
	}
	return g.byTarget[key]
}

func (g *grant) current() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.value
}

func (g *grant) set(value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value = value
}

// authorizeArgs describes an answer of 401.
type authorizeArgs struct {
	target     target
	grant      *grant
	used       string   // Authorization header of the request
	from       locality // of the server
	challenges []challenge
}

// authorize gets the Authorization header for the challenges. It returns "" if they name no known
// scheme, or if credentials are missing. One request at a time gets a new value, which the others
// then use.
func (h *host) authorize(ctx context.Context, a authorizeArgs) (string, error) {
	select {
	case a.grant.renewing <- struct{}{}:
		defer func() { <-a.grant.renewing }()
	case <-ctx.Done():
		return "", classified{context.Cause(ctx), errdefs.ErrUnavailable}
	}
	if now := a.grant.current(); now != a.used {
		return now, nil
	}
	value, err := h.answer(ctx, a)
	if err != nil {
		return "", err
	}
	a.grant.set(value)
	return value, nil
}

// answer follows the best challenge: a stolen token does less harm than a stolen password. If the
// token service may not get credentials, Basic remains.
func (h *host) answer(ctx context.Context, a authorizeArgs) (string, error) {
	cred, err := h.credentialFor(ctx, a.target)
	if err != nil {
		return "", err
	}
	var refused error
	for _, c := range a.challenges {
		if c.scheme != schemeBearer {
			continue
		}
		token, err := h.token(ctx, tokenArgs{authorizeArgs: a, challenge: c, cred: cred})
		var withheld *withheldError
		if errors.As(err, &withheld) {
			refused = err
			continue
		}
		if err != nil {
			return "", err
		}
		return "Bearer " + token, nil
	}
	for _, c := range a.challenges {
		if c.scheme == schemeBasic && cred.Username != "" && cred.Password != "" {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password)), nil
		}
	}
	return "", refused
}

// credentialFor returns the credentials for the target's server. A server to which another one
// redirects gets only credentials that docker_config or the caller has for it by name, and only
// over TLS.
func (h *host) credentialFor(ctx context.Context, t target) (auth.Credential, error) {
	verified := t.url.Scheme == "https" && !h.skipVerify
	switch {
	case !t.led:
		return h.credentials.forHost(ctx, t.url.Host)
	case !verified && !isLocalhost(t.url.Host):
		return auth.EmptyCredential, nil
	case verified && hostPort(t.url) == net.JoinHostPort(strings.ToLower(h.base.Hostname()), "443"):
		// From plain HTTP to HTTPS of the same host.
		return h.credentials.forHost(ctx, h.base.Host)
	}
	return h.credentials.forTarget(ctx, t.url.Host)
}

// tokenArgs describes a request for a token.
type tokenArgs struct {
	authorizeArgs
	challenge challenge
	cred      auth.Credential // for the target
}

// token returns the caller's token, or requests one from the token service of a challenge.
func (h *host) token(ctx context.Context, a tokenArgs) (string, error) {
	if a.cred.AccessToken != "" {
		return a.cred.AccessToken, nil
	}
	realm, err := url.Parse(a.challenge.params["realm"])
	if err != nil {
		return "", &withheldError{"registry names a token service by a malformed URL"}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, tokenStalls*h.stall, errStalled)
	defer cancel()
	from := a.from
	for range maxRedirects + 1 {
		s, err := h.tokenService(a.target, from, realm)
		if err != nil {
			return "", err
		}
		if a.cred != auth.EmptyCredential && !s.trusted {
			return "", withheldFrom(realm, a.target.url)
		}
		resp, near, err := h.askToken(ctx, s, h.tokenForm(a), a.cred)
		if err != nil {
			return "", fmt.Errorf("token service %s: %w", realm.Host, err)
		}
		next, err := redirectOf(resp)
		if next == nil && err == nil {
			return readToken(resp)
		}
		discard(resp)
		if err != nil {
			return "", fmt.Errorf("token service %s: %w", realm.Host, err)
		}
		realm, from = next, near
	}
	return "", fmt.Errorf("token service %s: more than %d redirects: %w", realm.Host, maxRedirects, errdefs.ErrUnauthenticated)
}

// tokenForm returns the parameters of a request for a token.
func (h *host) tokenForm(a tokenArgs) url.Values {
	scopes := strings.Fields(a.challenge.params["scope"])
	if !a.target.led || len(scopes) == 0 {
		scopes = append(scopes, auth.ScopeRepository(h.repository, auth.ActionPull))
	}
	form := url.Values{"scope": auth.CleanScopes(scopes)}
	if service := a.challenge.params["service"]; service != "" {
		form.Set("service", service)
	}
	return form
}

// askToken sends one request to a token service: a GET, with a password if there is one, or a POST
// with an identity token.
func (h *host) askToken(ctx context.Context, s tokenService, form url.Values, cred auth.Credential) (*http.Response, locality, error) {
	u := *s.url
	method, body := http.MethodGet, ""
	if cred.RefreshToken != "" {
		form.Set("scope", strings.Join(form["scope"], " "))
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cred.RefreshToken)
		form.Set("client_id", userAgent)
		method, body = http.MethodPost, form.Encode()
	} else {
		query := u.Query()
		for k, v := range form {
			query[k] = v
		}
		u.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(body))
	if err != nil {
		return nil, public, err
	}
	if s.route.own {
		req.Header = h.ownHeader()
		req.Header.Del("Authorization")
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", userAgent)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if cred.Username != "" || cred.Password != "" {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return h.transports.roundTrip(req, s.route)
}

// readToken reads the token in an answer and closes the answer.
func readToken(resp *http.Response) (string, error) {
	where := fmt.Sprintf("%s %s", resp.Request.Method, withoutQuery(resp.Request.URL.String()))
	resp, err := checkStatus(resp)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxTokenSize)).Decode(&answer); err != nil {
		return "", classified{fmt.Errorf("%s: decode token: %w", where, err), errdefs.ErrUnavailable}
	}
	token := cmp.Or(answer.AccessToken, answer.Token)
	if token == "" {
		return "", fmt.Errorf("%s: answer has no token: %w", where, errdefs.ErrUnauthenticated)
	}
	return token, nil
}
