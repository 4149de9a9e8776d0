package imageservice

import (
	"encoding/base64"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice/registry"
)

func TestCredentialsOfRequests(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, c := range map[string]struct {
		auth *runtimeapi.AuthConfig
		want registry.Auth
	}{
		"none":           {nil, registry.Auth{}},
		"empty":          {&runtimeapi.AuthConfig{}, registry.Auth{}},
		"password":       {&runtimeapi.AuthConfig{Username: "u", Password: "p:q"}, registry.Auth{Username: "u", Password: "p:q"}},
		"auth":           {&runtimeapi.AuthConfig{Auth: encode("u:p:q")}, registry.Auth{Username: "u", Password: "p:q"}},
		"auth with NULs": {&runtimeapi.AuthConfig{Auth: encode("u:p\x00\x00")}, registry.Auth{Username: "u", Password: "p"}},
		"identity token": {&runtimeapi.AuthConfig{IdentityToken: "i"}, registry.Auth{IdentityToken: "i"}},
		"registry token": {&runtimeapi.AuthConfig{RegistryToken: "r"}, registry.Auth{RegistryToken: "r"}},
		"server":         {&runtimeapi.AuthConfig{Auth: encode("u:p"), ServerAddress: "https://quay.io/v1/"}, registry.Auth{Username: "u", Password: "p", Server: "https://quay.io/v1/"}},
		"password first": {&runtimeapi.AuthConfig{Username: "u", Password: "p", IdentityToken: "i", Auth: "%", RegistryToken: "r"}, registry.Auth{Username: "u", Password: "p"}},
	} {
		if got, err := registryAuth(c.auth); err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"%", encode("nocolon"), encode(":p")} {
		if _, err := registryAuth(&runtimeapi.AuthConfig{Auth: bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("auth %q: %v", bad, err)
		}
	}
}
