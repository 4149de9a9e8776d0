package imageservice

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

func TestCredentials(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("u:p:q"))
	config := filepath.Join(t.TempDir(), "config.json")
	text := fmt.Sprintf(`{"auths":{"quay.io":{"auth":%q},"https://index.docker.io/v1/":{"auth":%q}}}`, encoded, encoded)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	password := auth.Credential{Username: "u", Password: "p:q"}
	for name, c := range map[string]struct {
		auth   *runtimeapi.AuthConfig
		config string
		host   string
		want   auth.Credential
	}{
		"none":              {nil, "", "quay.io", auth.EmptyCredential},
		"empty":             {&runtimeapi.AuthConfig{}, "", "quay.io", auth.EmptyCredential},
		"password":          {&runtimeapi.AuthConfig{Username: "u", Password: "p:q"}, "", "quay.io", password},
		"auth":              {&runtimeapi.AuthConfig{Auth: encoded}, "", "quay.io", password},
		"identity token":    {&runtimeapi.AuthConfig{IdentityToken: "i"}, "", "quay.io", auth.Credential{RefreshToken: "i"}},
		"registry token":    {&runtimeapi.AuthConfig{RegistryToken: "r"}, "", "quay.io", auth.Credential{AccessToken: "r"}},
		"its server":        {&runtimeapi.AuthConfig{Auth: encoded, ServerAddress: "https://quay.io/v1/"}, "", "quay.io", password},
		"hub":               {&runtimeapi.AuthConfig{Auth: encoded, ServerAddress: "https://index.docker.io/v1/"}, "", "registry-1.docker.io", password},
		"another server":    {&runtimeapi.AuthConfig{Auth: encoded, ServerAddress: "quay.io:5000"}, "", "quay.io", auth.EmptyCredential},
		"file":              {nil, config, "quay.io", password},
		"file, hub":         {nil, config, "registry-1.docker.io", password},
		"file, other":       {nil, config, "gcr.io", auth.EmptyCredential},
		"request wins":      {&runtimeapi.AuthConfig{Username: "k", Password: "w"}, config, "quay.io", auth.Credential{Username: "k", Password: "w"}},
		"file not there":    {nil, config + "x", "quay.io", auth.EmptyCredential},
		"server without //": {&runtimeapi.AuthConfig{Auth: encoded, ServerAddress: "quay.io/v2"}, "", "quay.io", password},
	} {
		t.Run(name, func(t *testing.T) {
			s := new(Service)
			s.opts.Store(&Options{DockerConfig: c.config})
			f, err := s.credentialSource(c.auth)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := f.forHost(t.Context(), c.host); err != nil || got != c.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	for _, bad := range []string{"%", base64.StdEncoding.EncodeToString([]byte("nocolon")), base64.StdEncoding.EncodeToString([]byte(":p"))} {
		if _, err := requestCredential(&runtimeapi.AuthConfig{Auth: bad}); err == nil {
			t.Errorf("auth %q was accepted", bad)
		}
	}
}
