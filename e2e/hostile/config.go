package hostile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxConfig is the size of a configuration that is far above the daemon's limit.
	maxConfig = 8<<20 - 64<<10
	// almostConfig is a size just below the daemon's limit.
	almostConfig = 2<<20 - 16<<10
	// most is the maximum number of entries that the daemon accepts in most lists.
	most = 4096
)

// zeroID is a digest as a JSON string.
var zeroID = `"sha256:` + strings.Repeat("0", 64) + `"`

// configs attack the decoder, the store and the users of an image configuration.
func configs() []Image {
	return []Image{
		{Name: "config-history", Quick: true, build: padded("history", "[", "{},", "{}]", maxConfig)},
		{Name: "config-history-4mib", build: padded("history", "[", "{},", "{}]", 4<<20)},
		{Name: "config-nested", build: raw("x", strings.Repeat("[", 4<<20))},
		{Name: "config-nested-closed", build: raw("x", strings.Repeat("[", 9000)+strings.Repeat("]", 9000))},
		{Name: "config-unknown", build: padded("x", "[", "0,", "0]", maxConfig)},
		{Name: "config-keys-twice", build: padded("x", `0,"y":[`, `0],"history":[{}],"x":[`, "0]", maxConfig)},
		{Name: "config-features", build: padded("os.features", "[", `"",`, `""]`, maxConfig)},
		{Name: "config-diff-ids", build: padded("rootfs", `{"diff_ids":[`, zeroID+`,`, zeroID+`]}`, maxConfig), Says: "has .* layers"},
		{Name: "env-short", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Env = many(60_000, "V%d=") })},
		{Name: "env-storm", build: configured(func(c *ocispec.ImageConfig) { c.Env = many(500_000, "V%d=") })},
		{Name: "env-same", build: configured(func(c *ocispec.ImageConfig) { c.Env = slices.Repeat([]string{"A=1"}, 1_000_000) })},
		{Name: "env-large", build: configured(func(c *ocispec.ImageConfig) { c.Env = []string{"A=" + strings.Repeat("a", 4<<20)} })},
		{Name: "env-empty", build: configured(func(c *ocispec.ImageConfig) { c.Env = slices.Repeat([]string{""}, 2_000_000) })},
		{Name: "labels", build: configured(func(c *ocispec.ImageConfig) { c.Labels = keys(400_000, "") })},
		{Name: "volumes", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Volumes = set(100_000, "/v%d") })},
		{Name: "volumes-more", build: configured(func(c *ocispec.ImageConfig) { c.Volumes = set(450_000, "/v%d") })},
		{Name: "ports", build: configured(func(c *ocispec.ImageConfig) { c.ExposedPorts = set(400_000, "%d/tcp") })},
		{Name: "command-storm", build: configured(func(c *ocispec.ImageConfig) {
			c.Cmd = append([]string{"true"}, slices.Repeat([]string{"a"}, 1_500_000)...)
		})},
		{Name: "command-large", build: configured(func(c *ocispec.ImageConfig) { c.Cmd = []string{"true", strings.Repeat("a", 7<<20)} })},
		{Name: "entrypoint-storm", build: configured(func(c *ocispec.ImageConfig) {
			c.Entrypoint = append([]string{"true"}, slices.Repeat([]string{"a"}, 1_500_000)...)
		})},
		{Name: "user-large", build: configured(func(c *ocispec.ImageConfig) { c.User = strings.Repeat("u", 7<<20) })},
		{Name: "directory-large", build: configured(func(c *ocispec.ImageConfig) { c.WorkingDir = strings.Repeat("/d", 3<<20) })},
		{Name: "signal-large", build: configured(func(c *ocispec.ImageConfig) { c.StopSignal = strings.Repeat("S", 7<<20) })},
		{Name: "architecture-large", build: func(p *parts) error { p.config.Architecture = strings.Repeat("a", 7<<20); return nil }},
	}
}

// fullConfigs have as much of everything as the daemon accepts.
func fullConfigs() []Image {
	const share = almostConfig / most // bytes of one entry, including its JSON
	ports := set(1<<16, "%d/tcp")
	maps.Copy(ports, set(1<<16, "%d/udp"))
	return []Image{
		{Name: "full-history", build: padded("history", "[", `{"created_by":"`+strings.Repeat("h", share-20)+`"},`, "{}]", almostConfig-share*2)},
		{Name: "full-text", build: raw("x", `"`+strings.Repeat("a", almostConfig)+`"`)},
		{Name: "full-env", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Env = many(most, "V%d="+strings.Repeat("v", share-16)) })},
		{Name: "full-env-same", build: configured(func(c *ocispec.ImageConfig) {
			c.Env = slices.Repeat([]string{"V=" + strings.Repeat("v", share-16)}, most)
		})},
		{Name: "full-env-one", build: configured(func(c *ocispec.ImageConfig) { c.Env = []string{"A=" + strings.Repeat("a", almostConfig)} })},
		{Name: "full-labels", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Labels = keys(most, strings.Repeat("v", share-16)) })},
		{Name: "full-ports", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.ExposedPorts = ports })},
		{Name: "full-volumes", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Volumes = set(128, "/v%d") })},
		{Name: "full-volumes-deep", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.Volumes = set(128, "/%d"+strings.Repeat("/d", 2000)) })},
		{Name: "full-volumes-large", build: configured(func(c *ocispec.ImageConfig) { c.Volumes = set(1, "/%d"+strings.Repeat("/d", almostConfig/2-16)) })},
		{Name: "full-command", build: configured(func(c *ocispec.ImageConfig) {
			c.Cmd = append([]string{"true"}, slices.Repeat([]string{strings.Repeat("a", share-16)}, most-1)...)
		})},
		{Name: "full-command-one", build: configured(func(c *ocispec.ImageConfig) { c.Cmd = []string{"true", strings.Repeat("a", almostConfig)} })},
		{Name: "full-user", build: configured(func(c *ocispec.ImageConfig) { c.User = strings.Repeat("u", almostConfig) })},
		{Name: "full-directory", Quick: true, build: configured(func(c *ocispec.ImageConfig) { c.WorkingDir = strings.Repeat("/d", almostConfig/2) })},
		{Name: "full-signal", build: configured(func(c *ocispec.ImageConfig) { c.StopSignal = strings.Repeat("S", almostConfig) })},
		{Name: "full-architecture", Says: "cannot run on this platform", build: func(p *parts) error { p.config.Architecture = strings.Repeat("a", almostConfig); return nil }},
	}
}

// configured returns an image with an unusual configuration for its containers.
func configured(change func(*ocispec.ImageConfig)) func(*parts) error {
	return func(p *parts) error { change(&p.config.Config); return nil }
}

// raw adds a field with arbitrary text, which need not be JSON, to the configuration.
func raw(field, value string) func(*parts) error {
	return func(p *parts) error {
		data, err := json.Marshal(p.config)
		p.rawConfig = fmt.Appendf(nil, `%s,%q:%s}`, data[:len(data)-1], field, value)
		return err
	}
}

// padded adds a field whose value is a repeated text of size bytes.
func padded(field, begin, repeated, end string, size int) func(*parts) error {
	return raw(field, begin+strings.Repeat(repeated, size/len(repeated))+end)
}

func many(n int, format string) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(format, i)
	}
	return list
}

func set(n int, format string) map[string]struct{} {
	m := make(map[string]struct{}, n)
	for i := range n {
		m[fmt.Sprintf(format, i)] = struct{}{}
	}
	return m
}

func keys(n int, value string) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m[fmt.Sprintf("k%d", i)] = value
	}
	return m
}
