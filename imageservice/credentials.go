package imageservice

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// credentialFunc returns the credentials that a pull shows to a host when that asks for them. What came with the request wins; it goes to every host
// that the pull visits unless it names a server, as kubelet's credentials do in other runtimes. Without any, the docker
// config.json is asked for the host.
func (s *Service) credentialFunc(a *runtimeapi.AuthConfig) (auth.CredentialFunc, error) {
	cred, err := requestCredential(a)
	if err != nil {
		return nil, err
	}
	if cred != auth.EmptyCredential {
		server := a.GetServerAddress()
		return func(_ context.Context, host string) (auth.Credential, error) {
			if server != "" && !sameServer(server, host) {
				return auth.EmptyCredential, nil
			}
			return cred, nil
		}, nil
	}
	if s.options().DockerConfig == "" {
		return func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil }, nil
	}
	store, err := credentials.NewStore(s.options().DockerConfig, credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("read docker config %s: %w", s.options().DockerConfig, err)
	}
	return credentials.Credential(store), nil
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
