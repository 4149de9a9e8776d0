package registry

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
)

func TestLocality(t *testing.T) {
	for address, want := range map[string]locality{
		"1.1.1.1": public, "2606:4700::1111": public, "172.32.0.1": public, "64:ff9b::1.1.1.1": public,
		"10.0.0.1": private, "172.16.0.1": private, "192.168.1.1": private, "100.64.0.1": private, "fd00::1": private,
		"fec0::1": private, "::ffff:10.0.0.1": private, "64:ff9b::a00:1": private, "2002:a00:1::": private,
		"127.0.0.1": loopback, "127.9.9.9": loopback, "::1": loopback, "0.0.0.0": loopback, "0.1.2.3": loopback, "::": loopback,
		"::ffff:127.0.0.1": loopback, "64:ff9b::7f00:1": loopback,
		"169.254.169.254": restricted, "fe80::1": restricted, "fe80::1%eth0": restricted, "100.100.100.200": restricted,
		"fd00:ec2::254": restricted, "168.63.129.16": restricted, "224.0.0.1": restricted, "ff02::1": restricted,
		"255.255.255.255": restricted, "::ffff:169.254.169.254": restricted, "64:ff9b::a9fe:a9fe": restricted,
	} {
		if got := localityOf(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %d, want %d", address, got, want)
		}
	}
}

// With a proxy only the text of a URL determines its locality.
func TestLocalityOfNames(t *testing.T) {
	for host, want := range map[string]locality{
		"registry.example": public, "registry.example.": public, "r2d2": public,
		"10.0.0.1": private, "[::1]": loopback, "localhost": loopback, "a.LOCALHOST": loopback,
		"2130706433": restricted, "0x7f000001": restricted, "127.1": restricted, "127.0.0.1.": restricted, "169.254.169.254": restricted,
	} {
		if got := literalLocality(&url.URL{Scheme: "http", Host: host}); got != want {
			t.Errorf("%s: %d, want %d", host, got, want)
		}
	}
}

// A server may lead to addresses at its own distance or farther away. A public server may lead into
// a private network only if the server there proves its name.
func TestLedRoute(t *testing.T) {
	h := testHost(t, "registry.example/app")
	for name, c := range map[string]struct {
		url        string
		from       locality
		skipVerify bool
		want       locality
	}{
		"public, http":                {"http://x/", public, false, public},
		"public, https":               {"https://x/", public, false, private},
		"public, https, not verified": {"https://x/", public, true, public},
		"private, http":               {"http://x/", private, false, private},
		"private, https":              {"https://x/", private, false, private},
		"loopback":                    {"http://x/", loopback, false, loopback},
	} {
		if got := h.ledRoute(must(url.Parse(c.url)), c.from, c.skipVerify); got.nearest != c.want || got.own {
			t.Errorf("%s: %+v, want nearest %d", name, got, c.want)
		}
	}
}

func testHost(t *testing.T, name string) *host {
	t.Helper()
	c := defaultHost(reference.Domain(named(name)), hostTable{})
	h := must(newHost(c, named(name), credentialSource{}, time.Second))
	t.Cleanup(h.close)
	return h
}

// The address is checked when the connection is made, so that a name cannot change its address
// after the check.
func TestAddressIsCheckedAtTheConnection(t *testing.T) {
	server := record(t, "127.0.0.1:0", func(http.ResponseWriter, *http.Request) {})
	server.Start()
	h := testHost(t, "registry.example/app")
	for name, r := range map[string]route{"public": {nearest: public}, "private": {nearest: private}} {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), nil))
		resp, _, err := h.transports.roundTrip(req, r)
		var refused *addressError
		if err == nil {
			_ = resp.Body.Close()
		}
		if !errors.As(err, &refused) || server.count() != 0 {
			t.Errorf("%s: %v, %d requests", name, err, server.count())
		}
	}
}

// Only some token services get the credentials for a registry.
func TestTokenServiceIsOfTheRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		registry, realm string
		trusted         bool
		config          hostConfig
	}{
		"itself":                    {"registry.example", "https://registry.example/token", true, hostConfig{}},
		"itself, port":              {"registry.example:5000", "https://registry.example:5000/token", true, hostConfig{}},
		"default port":              {"registry.example", "https://REGISTRY.example:443/token", true, hostConfig{}},
		"another port over TLS":     {"registry.example:5000", "https://registry.example/token", true, hostConfig{}},
		"Docker Hub":                {"docker.io", "https://auth.docker.io/token", true, hostConfig{}},
		"same site":                 {"registry.gitlab.com", "https://gitlab.com/jwt/auth", true, hostConfig{}},
		"another site":              {"registry.example", "https://auth.evil/token", false, hostConfig{}},
		"a suffix is no site":       {"a.co.uk", "https://b.co.uk/token", false, hostConfig{}},
		"a name is no site":         {"registry", "https://gitlab/token", false, hostConfig{}},
		"end of a name":             {"docker.io", "https://evildocker.io/token", false, hostConfig{}},
		"end of an address":         {"10.0.0.1:5000", "https://10.9.0.1/token", false, hostConfig{}},
		"another port of loopback":  {"127.0.0.1:5000", "https://127.0.0.1:5001/token", false, hostConfig{}},
		"another port of localhost": {"localhost:5000", "https://localhost:5001/token", false, hostConfig{}},
		"listed":                    {"registry.example", "https://auth.corp/token", true, hostConfig{tokenHosts: []string{"auth.corp"}}},
		"listed with another port":  {"registry.example", "https://auth.corp:8443/token", false, hostConfig{tokenHosts: []string{"auth.corp"}}},
		"listed, plain HTTP":        {"registry.example", "http://auth.corp/token", true, hostConfig{tokenHosts: []string{"http://auth.corp"}}},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHost(t, c.registry+"/app")
			h.tokenHosts = c.config.tokenHosts
			s, err := h.tokenService(target{url: h.url("/app"), tls: true}, public, must(url.Parse(c.realm)))
			if err != nil || s.trusted != c.trusted {
				t.Errorf("trusted %v, %v", s.trusted, err)
			}
		})
	}
	h := testHost(t, "registry.example/app")
	for _, realm := range []string{"http://registry.example/token", "file:///x", "//x/", "https:///x", "https://u:p@registry.example/", "gopher://registry.example/"} {
		if _, err := h.tokenService(target{url: h.url("/app"), tls: true}, public, must(url.Parse(realm))); err == nil {
			t.Errorf("%s may be asked", realm)
		}
	}
}
