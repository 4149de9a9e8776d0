package registry

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// hostTable is the part of hosts.toml that describes one host.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	// The next two are Mica's own. containerd ignores them.
	TokenHosts []string `toml:"token_hosts"`
	LayerHosts []string `toml:"layer_hosts"`
}

// hostsFile is the content of a hosts.toml.
type hostsFile struct {
	hostTable
	Server string               `toml:"server"`
	Hosts  map[string]hostTable `toml:"host"`
}

// decodeHosts decodes a hosts.toml. ignored are the unknown keys with their lines. containerd
// ignores them too: a file may be for a newer version.
func decodeHosts(data []byte) (f hostsFile, ignored []string, err error) {
	decoder := toml.NewDecoder(bytes.NewReader(data))
	err = decoder.DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			ignored = append(ignored, fmt.Sprintf("line %d: %s", line, strings.Join(unknown.Errors[i].Key(), ".")))
		}
		f = hostsFile{}
		err = toml.Unmarshal(data, &f)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return hostsFile{}, nil, fmt.Errorf("line %d, column %d: %w: %w", line, column, errdefs.ErrInvalidArgument, err)
	}
	if err != nil {
		return hostsFile{}, nil, fmt.Errorf("decode hosts.toml: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return f, ignored, nil
}

// parseHosts returns the hosts of a hosts.toml, in order, and its unknown keys. File names in it
// are relative to dir.
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
	if i := slices.IndexFunc(hosts, func(h hostConfig) bool { return h.covers(server) }); i >= 0 && reflect.ValueOf(f.hostTable).IsZero() {
		hosts[i].mirror = server.mirror
		return hosts, ignored, nil
	}
	return append(hosts, server), ignored, nil
}

// covers reports whether trying other after h is redundant.
func (h hostConfig) covers(other hostConfig) bool {
	return h.base == other.base && h.pull && h.resolve
}

// hostOrder returns the keys of the host table in the order of the file, which decoding loses.
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
	// The remaining keys are in an inline table, whose order has no meaning in TOML.
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

// setServer sets the URL of a host.
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

// setCapabilities sets what the host serves: everything if the list is empty.
func (h *hostConfig) setCapabilities(list []string) error {
	h.pull, h.resolve = len(list) == 0, len(list) == 0
	for _, c := range list {
		switch strings.ToLower(c) {
		case "pull":
			h.pull = true
		case "resolve":
			h.resolve = true
		case "push", "referrers": // not used by pulls
		default:
			return fmt.Errorf("capability %q is unknown: %w", c, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// setTable sets everything but the URL.
func (h *hostConfig) setTable(t hostTable, dir string) error {
	if err := h.setCapabilities(t.Capabilities); err != nil {
		return err
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
	// As in containerd, a plain HTTP host with a TLS setting is tried with TLS first.
	if h.base.Scheme == "http" && h.base.Port() != "80" && (len(h.ca) > 0 || len(h.client) > 0 || t.SkipVerify != nil) {
		h.base.Scheme, h.tryHTTP = "https", true
	}
	return nil
}

// checkServers returns errdefs.ErrInvalidArgument for an entry that names no server.
func checkServers(lists ...[]string) error {
	for _, entry := range slices.Concat(lists...) {
		u, err := serverURL(entry)
		if err != nil || u.Host == "" || u.Path != "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("server %q is not of the form host, host:port or http://host:port: %w", entry, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// serverURL parses an entry of token_hosts or layer_hosts. Without a scheme it means https.
func serverURL(entry string) (*url.URL, error) {
	if !strings.Contains(entry, "://") {
		entry = "https://" + entry
	}
	return url.Parse(entry)
}

// stringList converts a string or an array of strings.
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

// clientPairs converts "file", ["file", …] or [["cert", "key"], …].
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
