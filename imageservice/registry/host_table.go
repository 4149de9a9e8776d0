package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
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
	if err := h.setHeader(t.Header); err != nil {
		return err
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

func (h *hostConfig) setHeader(header map[string]any) error {
	for key, v := range header {
		values, err := stringList(v)
		if err != nil {
			return fmt.Errorf("header %q: %w", key, err)
		}
		if h.header == nil {
			h.header = make(http.Header)
		}
		h.header[http.CanonicalHeaderKey(key)] = values
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
