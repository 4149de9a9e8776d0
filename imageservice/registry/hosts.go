package registry

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// hostConfig is a host that serves a repository, by the conventions of containerd's certs.d
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
type hostConfig struct {
	base        url.URL // root of the API, path usually /v2
	pull        bool    // serves blobs, and manifests by digest
	resolve     bool    // serves manifests by tag
	mirror      bool    // is not the registry that the reference names
	tryHTTP     bool    // the port does not determine the protocol: plain HTTP if the server does not speak TLS
	skipVerify  bool
	ca          []string    // PEM files
	client      [][2]string // certificate and key PEM files; no key: in the certificate file
	header      http.Header
	dialTimeout time.Duration // 0 is the default
	tokenHosts  []string      // token services that get credentials in addition to those that may by default
	layerHosts  []string      // servers that may serve layers from any address
}

// findHosts returns the hosts that serve a registry's images, in the order to try, and the keys of
// hosts.toml that it ignored. The first certs.d directory that has a directory for the registry
// decides. Without any, the registry itself is the only host. Unlike in containerd, a hosts.toml
// that cannot be read is an error, because it may be there to keep the node off the public
// registry.
func findHosts(certsDirs []string, registry string) ([]hostConfig, hostNotes, error) {
	for _, root := range certsDirs {
		for _, name := range hostDirs(registry) {
			dir := filepath.Join(root, name)
			if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, hostNotes{}, fmt.Errorf("read registry configuration: %w", err)
			}
			return loadHostDir(dir, registry)
		}
	}
	return []hostConfig{defaultHost(registry, hostTable{})}, hostNotes{}, nil
}

// hostDirs returns the names of the directory for a registry, in the order to try.
func hostDirs(registry string) []string {
	names := []string{registry, "_default"}
	if i := strings.LastIndex(registry, ":"); i > 0 {
		names = slices.Insert(names, 0, registry[:i]+"_"+registry[i+1:]+"_")
	}
	return names
}

func loadHostDir(dir, registry string) ([]hostConfig, hostNotes, error) {
	file := filepath.Join(dir, "hosts.toml")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		h, err := certFiles(dir, registry)
		if err != nil {
			err = fmt.Errorf("read registry configuration %s: %w", dir, err)
		}
		return []hostConfig{h}, hostNotes{}, err
	}
	if err != nil {
		return nil, hostNotes{}, fmt.Errorf("read registry configuration %s: %w", dir, err)
	}
	hosts, ignored, err := parseHosts(data, dir, registry)
	if err != nil {
		return nil, hostNotes{}, fmt.Errorf("read registry configuration %s: %w", file, err)
	}
	return hosts, hostNotes{file: file, content: data, ignored: ignored}, nil
}

// certFiles reads a directory in Docker's older form: *.crt are authorities, *.cert and *.key a
// client certificate.
func certFiles(dir, registry string) (hostConfig, error) {
	h := defaultHost(registry, hostTable{})
	entries, err := os.ReadDir(dir)
	if err != nil {
		return h, err
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			h.ca = append(h.ca, file)
		case ".cert":
			key := strings.TrimSuffix(file, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = ""
			}
			h.client = append(h.client, [2]string{file, key})
		}
	}
	return h, nil
}

// defaultHost returns the registry itself: HTTPS, or for a name of this machine HTTP if the server
// does not speak TLS.
func defaultHost(registry string, t hostTable) hostConfig {
	h := hostConfig{base: url.URL{Scheme: "https", Host: registry, Path: "/v2"}, pull: true, resolve: true}
	if registry == "docker.io" {
		h.base.Host = "registry-1.docker.io"
	}
	if !isLocalhost(registry) {
		return h
	}
	switch _, port, _ := net.SplitHostPort(registry); port {
	case "", "443":
		h.skipVerify = t.SkipVerify == nil
	case "80":
		h.base.Scheme = "http"
	default:
		h.skipVerify = t.SkipVerify == nil
		h.tryHTTP = true
	}
	return h
}

func isLocalhost(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// tlsConfig loads the certificates of the host.
func (h *hostConfig) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.skipVerify}
	if len(h.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("load system certificates: %w", err)
		}
		for _, file := range h.ca {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("load certificate authority: %w", err)
			}
			if !pool.AppendCertsFromPEM(data) {
				return nil, fmt.Errorf("load certificate authority: %s holds no certificate", file)
			}
		}
		c.RootCAs = pool
	}
	for _, pair := range h.client {
		key := cmp.Or(pair[1], pair[0])
		cert, err := tls.LoadX509KeyPair(pair[0], key)
		if err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		c.Certificates = append(c.Certificates, cert)
	}
	return c, nil
}
