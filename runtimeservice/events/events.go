package events

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// backlog is how many events a subscriber may lag behind, and how many events a gap keeps.
	backlog = 1000
	// gap is how long new subscribers get missed events after a restart. A kubelet reconnects
	// within seconds, or starts by listing.
	gap = time.Minute
)

// Broadcaster delivers every event to all subscribers. It is safe for concurrent use.
type Broadcaster struct {
	mu     sync.Mutex // guards the rest and Subscription.lagged; never held while waiting
	subs   map[*Subscription]struct{}
	missed []*runtimeapi.ContainerEventResponse // since OpenGap, the newest backlog of them
	gapEnd time.Time                            // zero if no gap is open
	closed bool
}

// Subscription is the queue of one subscriber. One goroutine may use it.
type Subscription struct {
	from *Broadcaster
	// queue is closed when the subscriber lags too far, cancels, or the broadcaster closes.
	queue  chan *runtimeapi.ContainerEventResponse
	lagged bool
}

// NewBroadcaster returns a broadcaster without subscribers.
func NewBroadcaster() *Broadcaster { return &Broadcaster{subs: map[*Subscription]struct{}{}} }

// Subscribe starts a subscription to all events from now on. If a gap is open, it begins with the
// events of the gap. The caller has to call Cancel. Subscribe returns ErrUnavailable after Close.
func (b *Broadcaster) Subscribe() (*Subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("subscribe to container events: shutting down: %w", errdefs.ErrUnavailable)
	}
	b.expireGap()
	sub := &Subscription{from: b, queue: make(chan *runtimeapi.ContainerEventResponse, len(b.missed)+backlog)}
	for _, ev := range b.missed {
		sub.queue <- ev
	}
	b.subs[sub] = struct{}{}
	return sub, nil
}

// OpenGap keeps the events of the next minute for later subscribers. A start of the daemon calls it
// before it publishes what happened while no daemon ran.
func (b *Broadcaster) OpenGap() { b.openGap(time.Now().Add(gap)) }

func (b *Broadcaster) openGap(end time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gapEnd = end
}

// expireGap drops the kept events after the end of the gap. The caller holds mu.
func (b *Broadcaster) expireGap() {
	if !b.gapEnd.IsZero() && !time.Now().Before(b.gapEnd) {
		b.missed, b.gapEnd = nil, time.Time{}
	}
}

// keep stores ev if a gap is open. The caller holds mu.
func (b *Broadcaster) keep(ev *runtimeapi.ContainerEventResponse) {
	if b.expireGap(); b.gapEnd.IsZero() {
		return
	}
	if len(b.missed) == backlog {
		b.missed = slices.Delete(b.missed, 0, 1)
	}
	b.missed = append(b.missed, ev)
}

// drop disconnects a subscriber. The caller holds mu.
func (b *Broadcaster) drop(sub *Subscription) {
	if _, ok := b.subs[sub]; ok {
		delete(b.subs, sub)
		close(sub.queue)
	}
}

// Publish queues ev for every subscriber and disconnects those whose queues are full. It reports
// whether any subscriber got ev, not counting subscribers that may come during a gap. Nobody may
// change ev afterwards.
func (b *Broadcaster) Publish(ev *runtimeapi.ContainerEventResponse) (delivered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(ev)
	for sub := range b.subs {
		select {
		case sub.queue <- ev:
			delivered = true
		default:
			sub.lagged = true
			b.drop(sub)
		}
	}
	return delivered
}

// Wanted reports whether an event published now could reach a subscriber, also a later one. It
// saves callers from building events for nobody.
func (b *Broadcaster) Wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expireGap()
	return len(b.subs) > 0 || !b.gapEnd.IsZero()
}

// Close disconnects all subscribers and refuses new ones. Queued events can still be forwarded.
func (b *Broadcaster) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for sub := range b.subs {
		b.drop(sub)
	}
}

// Cancel ends the subscription. It may be called several times.
func (s *Subscription) Cancel() {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	s.from.drop(s)
}

// Forward calls send for each event until the subscription or ctx ends. When ctx ends it sends what
// is still queued and returns nil: a daemon that stops ends the stream's context, but the client is
// still connected. Errors: ErrResourceExhausted if the subscriber lagged too far behind,
// ErrUnavailable after Close, and the error of send.
func (s *Subscription) Forward(ctx context.Context, send func(*runtimeapi.ContainerEventResponse) error) error {
	for {
		select {
		case ev, ok := <-s.queue:
			if !ok {
				return s.cause()
			}
			if err := send(ev); err != nil {
				return err
			}
		case <-ctx.Done():
			s.flush(send)
			return nil
		}
	}
}

// flush ends the subscription and sends what is queued.
func (s *Subscription) flush(send func(*runtimeapi.ContainerEventResponse) error) {
	s.Cancel()
	for ev := range s.queue {
		if send(ev) != nil {
			return // the client has disconnected
		}
	}
}

// cause returns why the queue was closed.
func (s *Subscription) cause() error {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	if s.lagged {
		return fmt.Errorf("stream container events: the client lags %d events behind: %w", backlog, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("stream container events: shutting down: %w", errdefs.ErrUnavailable)
}
