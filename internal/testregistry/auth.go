package testregistry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Auth is the authentication that a registry requires. The zero value requires none. Basic
// authentication is enabled by Username, and bearer authentication by Bearer in addition.
type Auth struct {
	Username, Password string
	Bearer             bool   // tokens from /token instead of basic authentication at /v2/
	RefreshToken       string // Bearer: identity token that /token also accepts (grant_type=refresh_token)
	RegistryToken      string // a bearer token that is always accepted, without a request to /token
	Realm              string // Bearer: URL of the token service; "" means /token of the requested host
}

// allowed reports whether the request is authenticated; if not, it responds with 401.
func (r *Registry) allowed(w http.ResponseWriter, req *http.Request, scope string) bool {
	if r.auth.Username == "" && !r.auth.Bearer && r.auth.RegistryToken == "" {
		return true
	}
	token, isBearer := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if isBearer && r.auth.RegistryToken != "" && token == r.auth.RegistryToken {
		return true
	}
	if r.auth.Bearer {
		if isBearer && r.tokenCovers(token, scope) {
			return true
		}
		realm := r.auth.Realm
		if realm == "" {
			realm = scheme(req) + "://" + req.Host + "/token"
		}
		challenge := fmt.Sprintf(`Bearer realm=%q,service="testregistry"`, realm)
		if scope != "" {
			challenge += fmt.Sprintf(`,scope="%s"`, scope)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	}
	if user, password, ok := req.BasicAuth(); ok && user == r.auth.Username && password == r.auth.Password {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="testregistry"`)
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func scheme(req *http.Request) string {
	if req.TLS != nil {
		return "https"
	}
	return "http"
}

// tokenCovers reports whether an issued token allows every action of scope, which has the form
// repository:<name>:<action>[,<action>].
func (r *Registry) tokenCovers(token, scope string) bool {
	r.mu.Lock()
	granted, ok := r.tokens[token]
	r.mu.Unlock()
	if !ok {
		return false
	}
	want, actions := cutLast(scope, ":")
	for _, g := range strings.Fields(granted) {
		object, has := cutLast(g, ":")
		if object == want && containsAll(strings.Split(has, ","), strings.Split(actions, ",")) {
			return true
		}
	}
	return scope == ""
}

func containsAll(have, want []string) bool {
	set := make(map[string]bool, len(have))
	for _, h := range have {
		set[h] = true
	}
	for _, w := range want {
		if !set[w] {
			return false
		}
	}
	return true
}

func cutLast(s, sep string) (before, after string) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+len(sep):]
}

// serveToken issues tokens: GET with basic authentication, or POST with a password or refresh_token grant.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		writeError(w, http.StatusBadRequest, "UNSUPPORTED", err.Error())
		return
	}
	var ok bool
	if req.Method == http.MethodPost {
		switch req.PostForm.Get("grant_type") {
		case "refresh_token":
			ok = r.auth.RefreshToken != "" && req.PostForm.Get("refresh_token") == r.auth.RefreshToken
		case "password":
			ok = req.PostForm.Get("username") == r.auth.Username && req.PostForm.Get("password") == r.auth.Password
		}
	} else {
		user, password, _ := req.BasicAuth()
		ok = user == r.auth.Username && password == r.auth.Password
	}
	if !ok {
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong credentials")
		return
	}
	r.mu.Lock()
	r.serial++
	token := fmt.Sprintf("token-%d", r.serial)
	r.tokens[token] = strings.Join(req.Form["scope"], " ")
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}
