package registry

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

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
		auth   Auth
		config string
		host   string
		want   auth.Credential
	}{
		"none":              {Auth{}, "", "quay.io", auth.EmptyCredential},
		"password":          {Auth{Username: "u", Password: "p:q"}, "", "quay.io", password},
		"identity token":    {Auth{IdentityToken: "i"}, "", "quay.io", auth.Credential{RefreshToken: "i"}},
		"registry token":    {Auth{RegistryToken: "r"}, "", "quay.io", auth.Credential{AccessToken: "r"}},
		"its server":        {Auth{Username: "u", Password: "p:q", Server: "https://quay.io/v1/"}, "", "quay.io", password},
		"hub":               {Auth{Username: "u", Password: "p:q", Server: "https://index.docker.io/v1/"}, "", "registry-1.docker.io", password},
		"another server":    {Auth{Username: "u", Password: "p:q", Server: "quay.io:5000"}, "", "quay.io", auth.EmptyCredential},
		"file":              {Auth{}, config, "quay.io", password},
		"file, hub":         {Auth{}, config, "registry-1.docker.io", password},
		"file, other":       {Auth{}, config, "gcr.io", auth.EmptyCredential},
		"caller wins":       {Auth{Username: "k", Password: "w"}, config, "quay.io", auth.Credential{Username: "k", Password: "w"}},
		"file not there":    {Auth{}, config + "x", "quay.io", auth.EmptyCredential},
		"server without //": {Auth{Username: "u", Password: "p:q", Server: "quay.io/v2"}, "", "quay.io", password},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := newCredentials(c.auth, c.config)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := f.forHost(t.Context(), c.host); err != nil || got != c.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
