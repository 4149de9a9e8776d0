package imageservice

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/containerd/platforms"

	"github.com/micarun/mica/imageservice/registry"
	"github.com/micarun/mica/internal/operations"
)

// Options of a Service. The zero value of each field but Root is a sensible default.
type Options struct {
	// Root is the data root; it must be the root of the overlay store.
	Root string `toml:"-"`
	// CertsDirs are certs.d directories with containerd's hosts.toml files, read at every pull. The
	// first one that has a directory for the registry decides. Default /etc/mica/certs.d,
	// /etc/containerd/certs.d.
	CertsDirs []string `toml:"certs_dirs"`
	// DockerConfig is the path of a docker config.json, whose credentials are used for pulls
	// without credentials. Default none.
	DockerConfig string `toml:"docker_config"`
	// Platform to choose from indexes, such as linux/arm64/v8. Default: the platform of this
	// machine.
	Platform string `toml:"platform"`
	// RuntimeHandlers that an ImageSpec may name. Nil accepts every name.
	RuntimeHandlers []string `toml:"-"`
	// Pinned are patterns of images that are exempt from garbage collection. path.Match applies
	// them to the full reference, the familiar one, and the name alone.
	Pinned []string `toml:"pinned"`
	// Concurrency is the maximum number of layers of one image that are fetched at a time. Default
	// 3.
	Concurrency int `toml:"concurrency"`
	// TotalConcurrency is the maximum number of layers that all pulls fetch at a time, apart from
	// the first layer of each registry; see registry.Repository.AcquireSlot. Default 6.
	TotalConcurrency int `toml:"total_concurrency"`
	// StallTimeout is how long a transfer may be slower than 1 KiB/s before it is ended and
	// resumed. Default 30 s.
	StallTimeout time.Duration `toml:"stall_timeout"`
	// PullTimeout is the maximum duration of a pull. Default 1 h.
	PullTimeout time.Duration `toml:"pull_timeout"`
	// Attempts is the number of failures in succession after which a host is given up. Default 5.
	Attempts int `toml:"attempts"`
	// Backoff is the pause after the first failure; it doubles with each one up to MaxBackoff.
	// Default 500 ms.
	Backoff time.Duration `toml:"backoff"`
	// MaxBackoff bounds the pause between attempts. A registry that asks for a longer one by
	// Retry-After is given up. Default 30 s.
	MaxBackoff time.Duration `toml:"max_backoff"`
	// Operations tracks pulls and removals. It may be nil.
	Operations *operations.Tracker `toml:"-"`
}

func (o Options) withDefaults() (Options, error) {
	if o.Root == "" {
		return o, fmt.Errorf("image service options: root is not set")
	}
	if o.CertsDirs == nil {
		o.CertsDirs = []string{"/etc/mica/certs.d", "/etc/containerd/certs.d"}
	}
	if o.Platform == "" {
		o.Platform = platforms.Format(platforms.DefaultSpec())
	}
	o.Concurrency = cmp.Or(o.Concurrency, 3)
	o.PullTimeout = cmp.Or(o.PullTimeout, time.Hour)
	r := o.registries().WithDefaults()
	o.TotalConcurrency, o.StallTimeout, o.Attempts = r.Transfers, r.StallTimeout, r.Attempts
	o.Backoff, o.MaxBackoff = r.Backoff, r.MaxBackoff
	return o, o.Validate()
}

// Validate returns an error for the first field with an impossible value. Zero values are valid.
func (o Options) Validate() error {
	if o.Platform != "" {
		if _, err := platforms.Parse(o.Platform); err != nil {
			return fmt.Errorf("platform %q: %w", o.Platform, err)
		}
	}
	for _, p := range o.Pinned {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pinned pattern %q: %w", p, err)
		}
	}
	if slices.Min([]int{o.Concurrency, o.TotalConcurrency, o.Attempts}) < 0 {
		return fmt.Errorf("concurrency, total_concurrency and attempts must not be negative")
	}
	if slices.Min([]time.Duration{o.StallTimeout, o.PullTimeout, o.Backoff, o.MaxBackoff}) < 0 {
		return fmt.Errorf("stall_timeout, pull_timeout, backoff and max_backoff must not be negative")
	}
	return nil
}

// registries returns the options of the registry client.
func (o Options) registries() registry.Options {
	return registry.Options{
		CertsDirs: o.CertsDirs, DockerConfig: o.DockerConfig, Transfers: o.TotalConcurrency,
		StallTimeout: o.StallTimeout, Attempts: o.Attempts, Backoff: o.Backoff, MaxBackoff: o.MaxBackoff,
	}
}
