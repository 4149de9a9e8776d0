package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/micarun/mica/internal/sleep"
)

// mirrorAttempts is the number of attempts at a host that is followed by another one.
const mirrorAttempts = 2

// Repository is a client of one repository: of its registry and mirrors, in order. It serves one
// pull. Its methods may be called concurrently.
type Repository struct {
	ref   reference.Named
	hosts []*host
	opts  Options
	slots *slots
}

// Reference returns the reference that Open got.
func (r *Repository) Reference() reference.Named { return r.ref }

// Registry returns the name of the registry in the reference: host or host:port.
func (r *Repository) Registry() string { return reference.Domain(r.ref) }

// Hosts returns the number of hosts, which is at least 1.
func (r *Repository) Hosts() int { return len(r.hosts) }

// Close closes idle connections. No method may be called after it.
func (r *Repository) Close() {
	for _, h := range r.hosts {
		h.close()
	}
}

// WithoutFirst returns r without the first host that serves blobs, for a retry after that host sent
// something other than the blob. r has more than one host. Close is called on r only.
func (r *Repository) WithoutFirst() *Repository {
	c := *r
	i := slices.IndexFunc(r.hosts, func(h *host) bool { return h.pull })
	c.hosts = slices.Delete(slices.Clone(r.hosts), max(i, 0), max(i, 0)+1)
	return &c
}

// AcquireSlot waits until the client's transfers leave room for one more; see Options.Transfers. A
// registry with no transfer gets a slot although the limit is reached, up to four times the limit.
// The next free slot goes to the registry with the fewest. Registries below one registrable domain
// count as one. The caller calls release once. The error is the cause of ctx's end.
func (r *Repository) AcquireSlot(ctx context.Context) (release func(), err error) {
	site := siteOf(r.Registry())
	if err := r.slots.acquire(ctx, site); err != nil {
		return nil, err
	}
	return func() { r.slots.release(site) }, nil
}

// eachHost calls f for the hosts that may, in order, until one call succeeds. Transient failures
// are retried with growing pauses: Options.Attempts times on the last host, less often on the
// others. progressed, which may be nil, reports whether the last call made progress; its failure
// then does not count.
func (r *Repository) eachHost(ctx context.Context, may func(*host) bool, f func(*host) error, progressed func() bool) error {
	var hosts []*host
	for _, h := range r.hosts {
		if may(h) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return fmt.Errorf("no host of registry %s has the capability: %w", r.Registry(), errdefs.ErrFailedPrecondition)
	}
	var failures hostErrors
	for i, h := range hosts {
		attempts := r.opts.Attempts
		if i < len(hosts)-1 {
			attempts = min(attempts, mirrorAttempts)
		}
		err := r.retry(ctx, attempts, func() error { return f(h) }, progressed)
		if err == nil {
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", h, err))
		if ctx.Err() != nil {
			break
		}
	}
	return failures
}

// retry calls f until it succeeds, fails permanently, or has failed attempts times in succession.
func (r *Repository) retry(ctx context.Context, attempts int, f func() error, progressed func() bool) error {
	backoff := r.opts.Backoff
	for failed := 0; ; {
		err := f()
		if err == nil || ctx.Err() != nil || !transient(err) {
			return err
		}
		if progressed != nil && progressed() {
			failed, backoff = 0, r.opts.Backoff
		}
		failed++
		if failed >= attempts {
			if failed > 1 {
				err = fmt.Errorf("given up after %d attempts: %w", failed, err)
			}
			return err
		}
		pause := backoff/2 + rand.N(backoff/2+1)
		var status *statusError
		if errors.As(err, &status) && status.retryAfter > 0 {
			if status.retryAfter > r.opts.MaxBackoff {
				return fmt.Errorf("asked to come back after %s, later than this pull waits: %w", status.retryAfter, err)
			}
			pause = max(pause, status.retryAfter)
		}
		if err := sleep.For(ctx, pause); err != nil {
			return err
		}
		backoff = min(2*backoff, r.opts.MaxBackoff)
	}
}
