package registry

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// helperTimeout bounds a credential helper. A helper that asks a cloud takes a second or two.
const helperTimeout = 30 * time.Second

// Auth has the credentials that a caller supplies: a password, an identity token or a registry
// token. The zero value has none.
type Auth struct {
	Username, Password string
	IdentityToken      string // refresh token for a token service
	RegistryToken      string // bearer token for the registry itself
	// Server is the only server that gets the credentials, as a host or a URL. If it is empty,
	// every host that the reference or hosts.toml names gets them.
	Server string
}

// credentialSource has the credentials for servers that ask for them. The zero value has none.
type credentialSource struct {
	request auth.Credential // of the caller
	server  string          // Auth.Server
	config  auth.CredentialFunc
}

// newCredentials returns the credentials of a, or those of the docker config.json at a path if a
// has none.
func newCredentials(a Auth, dockerConfig string) (credentialSource, error) {
	cred := auth.Credential{
		Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken,
	}
	if cred != auth.EmptyCredential {
		return credentialSource{request: cred, server: a.Server}, nil
	}
	if dockerConfig == "" {
		return credentialSource{}, nil
	}
	store, err := credentials.NewStore(dockerConfig, credentials.StoreOptions{})
	if err != nil {
		return credentialSource{}, fmt.Errorf("read docker config %s: %w", dockerConfig, err)
	}
	return credentialSource{config: credentials.Credential(store)}, nil
}

// fromCaller reports whether the caller supplied the credentials.
func (c credentialSource) fromCaller() bool { return c.request != auth.EmptyCredential }

// forHost returns the credentials for a host that the reference or hosts.toml names. Credentials of
// the caller go to each of these hosts unless they name a server, as in other runtimes.
func (c credentialSource) forHost(ctx context.Context, host string) (auth.Credential, error) {
	if c.fromCaller() && c.server == "" {
		return c.request, nil
	}
	return c.forTarget(ctx, host)
}

// forTarget returns the credentials for a host to which another server redirects: only those that
// are for the host by name.
func (c credentialSource) forTarget(ctx context.Context, host string) (auth.Credential, error) {
	if c.fromCaller() {
		if c.server != "" && sameServer(c.server, host) {
			return c.request, nil
		}
		return auth.EmptyCredential, nil
	}
	if c.config == nil {
		return auth.EmptyCredential, nil
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cred, err := c.config(ctx, host)
	if err != nil {
		return cred, classified{fmt.Errorf("find credentials for %s: %w", host, err), errdefs.ErrUnauthenticated}
	}
	return cred, nil
}

// sameServer reports whether a server address, with or without scheme and path, names host. Docker
// Hub has several names.
func sameServer(server, host string) bool {
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		server = u.Host
	} else {
		server, _, _ = strings.Cut(server, "/")
	}
	return canonicalServer(server) == canonicalServer(host)
}

func canonicalServer(host string) string {
	switch host = strings.ToLower(host); host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	default:
		return strings.TrimSuffix(host, ":443")
	}
}
