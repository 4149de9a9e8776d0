package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/testregistry"
)

func TestTLS(t *testing.T) {
	e := newEnv(t, testregistry.Auth{}, "")
	e.push(image{content: "tls"})
	server := httptest.NewTLSServer(http.StripPrefix("/prefix", e.registry))
	defer server.Close()
	plain := httptest.NewTLSServer(e.registry)
	defer plain.Close()
	pem := filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, pem, server.Certificate().Raw)
	for name, c := range map[string]struct {
		toml string
		want func(error) bool
	}{
		"unknown authority": {fmt.Sprintf("[host.\"%s/prefix\"]\n", server.URL), errdefs.IsFailedPrecondition},
		"ca":                {fmt.Sprintf("server = \"%s/prefix\"\nca = %q\n", server.URL, pem), nil},
		"skip_verify":       {fmt.Sprintf("server = \"%s/prefix/v2\"\noverride_path = true\nskip_verify = true\n", server.URL), nil},
		"ca not there":      {fmt.Sprintf("server = \"%s\"\nca = \"absent.pem\"", server.URL), func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
	} {
		t.Run(name, func(t *testing.T) {
			registry := strings.ReplaceAll(name, " ", "-") + ".example"
			if c.want != nil && name == "unknown authority" {
				c.toml = "server = \"" + server.URL + "/prefix\"\n"
			}
			e.configure(strings.ReplaceAll(registry, "_", "-"), c.toml)
			_, err := e.pull(strings.ReplaceAll(registry, "_", "-")+"/app:v1", Auth{})
			if c.want == nil && err != nil || c.want != nil && !c.want(err) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("loopback name speaks TLS", func(t *testing.T) {
		if _, err := e.pull(strings.TrimPrefix(plain.URL, "https://")+"/app:v1", Auth{}); err != nil {
			t.Error(err)
		}
	})
}
