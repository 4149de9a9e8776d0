package registry

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

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
		default: // no key of a host
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
