package imageservice

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2/unstable"
)

// hostConfig is one place to get an image from, by the conventions of containerd's certs.d
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
type hostConfig struct {
	base        url.URL // root of the API, path usually /v2
	pull        bool    // serves blobs, and manifests by digest
	resolve     bool    // may tell what a tag stands for
	mirror      bool    // is not the registry that the reference names
	tryHTTP     bool    // the port says nothing about the protocol: plain HTTP when the server does not speak TLS
	skipVerify  bool
	ca          []string    // PEM files
	client      [][2]string // certificate and key PEM files; no key: in the certificate file
	header      http.Header
	dialTimeout time.Duration // 0 is the default
	tokenHosts  []string      // servers that may get the credentials for a token, beyond those that may by default
	layerHosts  []string      // servers that layers may come from whatever their address
}

// hostTable is the part of hosts.toml that describes one host.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	// The next two are Mica's own; containerd passes over them.
	TokenHosts []string `toml:"token_hosts"`
	LayerHosts []string `toml:"layer_hosts"`
}

// hostsFile is a hosts.toml.
type hostsFile struct {
	hostTable
	Server string               `toml:"server"`
	Hosts  map[string]hostTable `toml:"host"`
}

// findHosts returns where to get images of a registry from, in the order to try. The first of the certs.d directories that has a directory for the
// registry decides; without any it is the registry itself. Unlike containerd, a hosts.toml that cannot be read
// is an error and not passed over, because it may be there to keep the node off the public registry.
func findHosts(certsDirs []string, registry string) ([]hostConfig, error) {
	hosts, _, err := findHostsAndNotes(certsDirs, registry)
	return hosts, err
}

// findHostsAndNotes is findHosts with what the file that decided has besides.
func findHostsAndNotes(certsDirs []string, registry string) ([]hostConfig, hostNotes, error) {
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

// hostDirs returns the directory names that are looked for, in order.
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

// certFiles reads a directory in Docker's older form: *.crt are authorities, *.cert and *.key a client certificate.
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

// parseHosts reads a hosts.toml. Relative file names in it are relative to dir. It also returns
// which keys have no meaning.
func parseHosts(data []byte, dir, registry string) (hosts []hostConfig, ignored []string, err error) {
	f, ignored, err := decodeHosts(data)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range hostOrder(data, f.Hosts) {
		h := hostConfig{mirror: true}
		if err := h.setServer(name, f.Hosts[name]); err != nil {
			return nil, nil, err
		}
		if err := h.setTable(f.Hosts[name], dir); err != nil {
			return nil, nil, fmt.Errorf("host %q: %w", name, err)
		}
		hosts = append(hosts, h)
	}
	server := defaultHost(registry, f.hostTable)
	if f.Server != "" {
		server = hostConfig{}
		if err := server.setServer(f.Server, f.hostTable); err != nil {
			return nil, nil, err
		}
		server.mirror = server.base.Host != defaultHost(registry, f.hostTable).base.Host
	}
	if err := server.setTable(f.hostTable, dir); err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	if i := slices.IndexFunc(hosts, server.is); i >= 0 && reflect.ValueOf(f.hostTable).IsZero() {
		hosts[i].mirror = server.mirror
		return hosts, ignored, nil
	}
	return append(hosts, server), ignored, nil
}

// is says that asking h after other would be asking the same again.
func (h hostConfig) is(other hostConfig) bool {
	return h.base == other.base && other.pull && other.resolve
}

// hostOrder returns the keys of the host table in the order in which the file names them, which decoding loses.
func hostOrder(data []byte, hosts map[string]hostTable) []string {
	var order []string
	add := func(keys []string) {
		if len(keys) >= 2 && keys[0] == "host" && !slices.Contains(order, keys[1]) {
			order = append(order, keys[1])
		}
	}
	var parser unstable.Parser
	parser.Reset(data)
	var table []string
	for parser.NextExpression() {
		e := parser.Expression()
		switch e.Kind {
		case unstable.Table:
			table = keyParts(e)
			add(table)
		case unstable.KeyValue:
			add(append(slices.Clone(table), keyParts(e)...))
		}
	}
	order = slices.DeleteFunc(order, func(name string) bool {
		_, ok := hosts[name]
		return !ok
	})
	// What remains stands in an inline table of its own; its order is not significant in TOML.
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		add([]string{"host", name})
	}
	return order
}

func keyParts(e *unstable.Node) []string {
	var parts []string
	for it := e.Key(); it.Next(); {
		parts = append(parts, string(it.Node().Data))
	}
	return parts
}

// defaultHost is the registry itself: HTTPS, but for a name of this machine HTTP where no TLS is spoken.
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

// setServer reads the URL of a host.
func (h *hostConfig) setServer(server string, t hostTable) error {
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" {
		return fmt.Errorf("host %q is not a URL: %w", server, errdefs.ErrInvalidArgument)
	}
	h.base = url.URL{Scheme: u.Scheme, Host: u.Host}
	if u.Path != "" {
		h.base.Path = path.Clean(u.Path)
	}
	if h.base.Path == "/" {
		h.base.Path = ""
	}
	if !t.OverridePath && !strings.HasSuffix(h.base.Path, "/v2") {
		h.base.Path += "/v2"
	}
	return nil
}

// setTable reads everything but the URL.
func (h *hostConfig) setTable(t hostTable, dir string) error {
	h.pull, h.resolve = len(t.Capabilities) == 0, len(t.Capabilities) == 0
	for _, c := range t.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "push", "referrers": // no part of a pull
		default:
			return fmt.Errorf("capability %q is unknown: %w", c, errdefs.ErrInvalidArgument)
		}
	}
	if t.SkipVerify != nil {
		h.skipVerify = *t.SkipVerify
	}
	var err error
	if h.ca, err = stringList(t.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	for i := range h.ca {
		h.ca[i] = absolute(dir, h.ca[i])
	}
	if h.client, err = clientPairs(t.Client, dir); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	for key, v := range t.Header {
		values, err := stringList(v)
		if err != nil {
			return fmt.Errorf("header %q: %w", key, err)
		}
		if h.header == nil {
			h.header = make(http.Header)
		}
		h.header[http.CanonicalHeaderKey(key)] = values
	}
	if t.DialTimeout != "" {
		if h.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return fmt.Errorf("dial_timeout: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	if err := checkServers(t.TokenHosts, t.LayerHosts); err != nil {
		return err
	}
	h.tokenHosts, h.layerHosts = t.TokenHosts, t.LayerHosts
	// As in containerd, a TLS setting for a plain HTTP host means: TLS if it speaks it.
	if h.base.Scheme == "http" && h.base.Port() != "80" && (len(h.ca) > 0 || len(h.client) > 0 || t.SkipVerify != nil) {
		h.base.Scheme, h.tryHTTP = "https", true
	}
	return nil
}

// checkServers refuses entries that name no server.
func checkServers(lists ...[]string) error {
	for _, entry := range slices.Concat(lists...) {
		u, err := serverURL(entry)
		if err != nil || u.Host == "" || u.Path != "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("server %q is not of the form host, host:port or http://host:port: %w", entry, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// serverURL reads an entry of token_hosts or layer_hosts. One without a scheme means https.
func serverURL(entry string) (*url.URL, error) {
	if !strings.Contains(entry, "://") {
		entry = "https://" + entry
	}
	return url.Parse(entry)
}

// stringList reads a string or an array of strings.
func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not a string: %w", e, errdefs.ErrInvalidArgument)
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, fmt.Errorf("%v is neither a string nor an array of strings: %w", v, errdefs.ErrInvalidArgument)
}

// clientPairs reads "file", ["file", …] or [["cert", "key"], …].
func clientPairs(v any, dir string) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var pairs [][2]string
	for _, e := range list {
		files, err := stringList(e)
		if err != nil {
			return nil, err
		}
		switch _, isArray := e.([]any); {
		case len(files) == 0 && !isArray:
		case len(files) == 1 && !isArray:
			pairs = append(pairs, [2]string{absolute(dir, files[0]), ""})
		case len(files) == 2:
			pairs = append(pairs, [2]string{absolute(dir, files[0]), absolute(dir, files[1])})
		default:
			return nil, fmt.Errorf("%v is not a pair of certificate and key: %w", e, errdefs.ErrInvalidArgument)
		}
	}
	return pairs, nil
}

func absolute(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

// tlsConfig loads the files that the host names.
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
		key := orDefault(pair[1], pair[0])
		cert, err := tls.LoadX509KeyPair(pair[0], key)
		if err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		c.Certificates = append(c.Certificates, cert)
	}
	return c, nil
}
