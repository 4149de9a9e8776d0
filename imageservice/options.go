package imageservice

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/containerd/platforms"

	"github.com/micarun/mica/internal/journal"
)

// Options of a Service. The zero value of each field but Root is a sensible default.
type Options struct {
	// Root is the data root; it must be the root of the overlay store.
	Root string `toml:"-"`
	// CertsDirs are certs.d directories with containerd's hosts.toml files, read at every pull. The first one that has a directory for
	// the registry decides. Default /etc/mica/certs.d, /etc/containerd/certs.d.
	CertsDirs []string `toml:"certs_dirs"`
	// DockerConfig is the path of a docker config.json whose credentials are used for pulls that bring none. Default none.
	DockerConfig string `toml:"docker_config"`
	// Platform to choose from indexes, such as linux/arm64/v8. Default that of this machine.
	Platform string `toml:"platform"`
	// RuntimeHandlers that an ImageSpec may name. Nil accepts every name.
	RuntimeHandlers []string `toml:"-"`
	// Pinned are patterns (path.Match on the full reference, the familiar one, or the name alone) of images to be exempt from
	// garbage collection.
	Pinned []string `toml:"pinned"`
	// Concurrency is the number of layers of one image fetched at a time. Default 3.
	Concurrency int `toml:"concurrency"`
	// TotalConcurrency is the number of layers fetched at a time by all pulls; see slots for what goes beyond it. Default 6.
	TotalConcurrency int `toml:"total_concurrency"`
	// StallTimeout is how long a transfer may be slower than minRate before it is given up and resumed. Default 30 s.
	StallTimeout time.Duration `toml:"stall_timeout"`
	// PullTimeout is how long a pull may take in all. Default 1 h.
	PullTimeout time.Duration `toml:"pull_timeout"`
	// Attempts is how often in succession a request may fail before its host is given up. Default 5.
	Attempts int `toml:"attempts"`
	// Backoff is the pause after the first failure; it doubles with each one up to MaxBackoff. Default 500 ms.
	Backoff time.Duration `toml:"backoff"`
	// MaxBackoff bounds the pause between attempts, also one that a registry asks for by Retry-After. Default 30 s.
	MaxBackoff time.Duration `toml:"max_backoff"`
	// Journal hears what becomes of images; nil is none.
	Journal *journal.Journal `toml:"-"`
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
	o.Concurrency = orDefault(o.Concurrency, 3)
	o.TotalConcurrency = orDefault(o.TotalConcurrency, 6)
	o.Attempts = orDefault(o.Attempts, 5)
	o.StallTimeout = orDefault(o.StallTimeout, 30*time.Second)
	o.PullTimeout = orDefault(o.PullTimeout, time.Hour)
	o.Backoff = orDefault(o.Backoff, 500*time.Millisecond)
	o.MaxBackoff = orDefault(o.MaxBackoff, 30*time.Second)
	return o, o.Validate()
}

// Validate reports the first field whose value makes no sense. Zero values always do.
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

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
