package imageservice

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice/registry"
)

// registryAuth converts the credentials of a CRI request. The first of user name, identity token,
// auth and registry token that is set counts. Error: errdefs.ErrInvalidArgument.
func registryAuth(a *runtimeapi.AuthConfig) (registry.Auth, error) {
	auth := registry.Auth{Server: a.GetServerAddress()}
	switch {
	case a.GetUsername() != "":
		auth.Username, auth.Password = a.GetUsername(), a.GetPassword()
	case a.GetIdentityToken() != "":
		auth.IdentityToken = a.GetIdentityToken()
	case a.GetAuth() != "":
		data, err := base64.StdEncoding.DecodeString(a.GetAuth())
		if err != nil {
			return registry.Auth{}, fmt.Errorf("decode registry credentials: not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, password, ok := strings.Cut(strings.Trim(string(data), "\x00"), ":")
		if !ok || user == "" {
			return registry.Auth{}, fmt.Errorf("decode registry credentials: not of the form user:password: %w", errdefs.ErrInvalidArgument)
		}
		auth.Username, auth.Password = user, strings.Trim(password, "\x00")
	case a.GetRegistryToken() != "":
		auth.RegistryToken = a.GetRegistryToken()
	}
	return auth, nil
}
