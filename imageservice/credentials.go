package imageservice

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// helperTimeout bounds a credential helper. One that asks a cloud takes a second or two.
const helperTimeout = 30 * time.Second

// credentialSource has what a pull may show to servers that ask for it. The zero value has nothing.
type credentialSource struct {
	request auth.Credential // came with the request
	server  string          // the only server that request is for; "": every host that the pull is configured to visit
	config  auth.CredentialFunc
}

// credentialSource returns the credentials of a pull. What came with the request wins; without any, the docker config.json
// is asked.
func (s *Service) credentialSource(a *runtimeapi.AuthConfig) (credentialSource, error) {
	cred, err := requestCredential(a)
	if err != nil {
		return credentialSource{}, err
	}
	if cred != auth.EmptyCredential {
		return credentialSource{request: cred, server: a.GetServerAddress()}, nil
	}
	if s.options().DockerConfig == "" {
		return credentialSource{}, nil
	}
	store, err := credentials.NewStore(s.options().DockerConfig, credentials.StoreOptions{})
	if err != nil {
		return credentialSource{}, fmt.Errorf("read docker config %s: %w", s.options().DockerConfig, err)
	}
	return credentialSource{config: credentials.Credential(store)}, nil
}

// brought tells whether credentials came with the request.
func (c credentialSource) brought() bool { return c.request != auth.EmptyCredential }

// forHost returns what a host may see that the reference or hosts.toml names. Credentials of the request go to each of
// them unless they name a server, as in other runtimes.
func (c credentialSource) forHost(ctx context.Context, host string) (auth.Credential, error) {
	if c.brought() && c.server == "" {
		return c.request, nil
	}
	return c.forTarget(ctx, host)
}

// forTarget returns what a host may see that another server redirects to: only what is meant for it by name.
func (c credentialSource) forTarget(ctx context.Context, host string) (auth.Credential, error) {
	if c.brought() {
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

// requestCredential reads the credentials of a CRI request. Error: errdefs.ErrInvalidArgument.
func requestCredential(a *runtimeapi.AuthConfig) (auth.Credential, error) {
	switch {
	case a.GetUsername() != "":
		return auth.Credential{Username: a.GetUsername(), Password: a.GetPassword()}, nil
	case a.GetIdentityToken() != "":
		return auth.Credential{RefreshToken: a.GetIdentityToken()}, nil
	case a.GetAuth() != "":
		data, err := base64.StdEncoding.DecodeString(a.GetAuth())
		if err != nil {
			return auth.Credential{}, fmt.Errorf("decode registry credentials: not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, password, ok := strings.Cut(strings.Trim(string(data), "\x00"), ":")
		if !ok || user == "" {
			return auth.Credential{}, fmt.Errorf("decode registry credentials: not of the form user:password: %w", errdefs.ErrInvalidArgument)
		}
		return auth.Credential{Username: user, Password: strings.Trim(password, "\x00")}, nil
	case a.GetRegistryToken() != "":
		return auth.Credential{AccessToken: a.GetRegistryToken()}, nil
	}
	return auth.EmptyCredential, nil
}

// sameServer tells whether a server address, with or without scheme and path, names host. Docker Hub has several names.
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
