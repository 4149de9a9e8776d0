package registry

import (
	"cmp"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	"k8s.io/klog/v2"
)

// Options of a Client. Zero fields have defaults.
type Options struct {
	// CertsDirs are directories in the form of containerd's certs.d, which Open reads every time.
	// The first one that has a directory for the registry decides. Default none.
	CertsDirs []string
	// DockerConfig is the path of a docker config.json. Its credentials are used if the caller has
	// none. Default none.
	DockerConfig string
	// Transfers is the number of transfers that hold a slot at a time; see Repository.AcquireSlot.
	// Default 6.
	Transfers int
	// StallTimeout is how long a transfer may be slower than 1 KiB/s before it is ended and
	// resumed. It also bounds the wait for the header of an answer. Default 30 s.
	StallTimeout time.Duration
	// Attempts is the number of failures in succession after which a host is given up. Default 5.
	Attempts int
	// Backoff is the pause after the first failure. It doubles with each failure up to MaxBackoff.
	// Default 500 ms.
	Backoff time.Duration
	// MaxBackoff bounds the pause between attempts. A registry that asks for a longer one by
	// Retry-After is given up. Default 30 s.
	MaxBackoff time.Duration
}

// WithDefaults returns o with the default for each zero field.
func (o Options) WithDefaults() Options {
	o.Transfers = cmp.Or(o.Transfers, 6)
	o.StallTimeout = cmp.Or(o.StallTimeout, 30*time.Second)
	o.Attempts = cmp.Or(o.Attempts, 5)
	o.Backoff = cmp.Or(o.Backoff, 500*time.Millisecond)
	o.MaxBackoff = cmp.Or(o.MaxBackoff, 30*time.Second)
	return o
}

// Client is the access of a node to registries. Its methods may be called concurrently.
type Client struct {
	opts  atomic.Pointer[Options] // never nil; the options themselves do not change
	slots *slots
	log   ignoredKeys
}

// New returns a client. It has nothing to close: connections belong to a Repository.
func New(o Options) *Client {
	o = o.WithDefaults()
	c := &Client{slots: newSlots(o.Transfers)}
	c.opts.Store(&o)
	return c
}

// Reload replaces the options. Open repositories keep theirs, but their transfers count against the
// new limit.
func (c *Client) Reload(o Options) {
	o = o.WithDefaults()
	c.slots.setLimit(o.Transfers)
	c.opts.Store(&o)
}

// Open returns a client of the repository that ref names, with the hosts of the registry's
// configuration. ref has a tag or a digest. Open sends no request. The caller closes the
// repository.
//
// Errors: errdefs.ErrInvalidArgument for a hosts.toml that cannot be read, and errors of files that
// it or Options.DockerConfig names.
func (c *Client) Open(ref reference.Named, a Auth) (*Repository, error) {
	o := *c.opts.Load()
	cred, err := newCredentials(a, o.DockerConfig)
	if err != nil {
		return nil, err
	}
	configs, notes, err := findHosts(o.CertsDirs, reference.Domain(ref))
	if err != nil {
		return nil, err
	}
	c.log.report(klog.Background(), notes)
	r := &Repository{ref: ref, opts: o, slots: c.slots}
	for _, config := range configs {
		h, err := newHost(config, ref, cred, o.StallTimeout)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("configure host %s: %w", config.base.Host, err)
		}
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}
