package runtimeservice

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// eventBacklog is how many events a subscriber may lag behind, and how many
	// are kept for those that come back after a restart.
	eventBacklog = 1000
	// eventGap is how long after a restart subscribers are told what they
	// missed. A kubelet comes back within seconds or begins by listing.
	eventGap = time.Minute
)

// broadcaster hands events to every subscriber, in order. A subscriber that
// lags too far is cut off, so that it lists anew, rather than missing some.
//
// A restart of the daemon cuts all subscribers off. What the recovery finds to
// have happened meanwhile, and what happens until they are back, is kept from
// openGap on, and told first to everybody who subscribes before the gap ends.
// A subscription gets every event once; of more than eventBacklog the newest.
type broadcaster struct {
	mu     sync.Mutex // guards the rest; never held while waiting
	subs   map[*subscription]struct{}
	missed []*runtimeapi.ContainerEventResponse // since openGap
	gapEnd time.Time                            // zero when no gap is open
	closed bool
}

// subscription is one subscriber's queue. It is closed when the subscriber
// lags too far, is cancelled, or the broadcaster closes.
type subscription struct {
	queue  chan *runtimeapi.ContainerEventResponse
	lagged bool
}

func newBroadcaster() *broadcaster { return &broadcaster{subs: map[*subscription]struct{}{}} }

func (b *broadcaster) subscribe() (*subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("subscribe to container events: shutting down: %w", errdefs.ErrUnavailable)
	}
	b.endGap()
	sub := &subscription{queue: make(chan *runtimeapi.ContainerEventResponse, len(b.missed)+eventBacklog)}
	for _, ev := range b.missed {
		sub.queue <- ev
	}
	b.subs[sub] = struct{}{}
	return sub, nil
}

// openGap begins to keep events, until end.
func (b *broadcaster) openGap(end time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gapEnd = end
}

// endGap forgets what was kept once the gap's time is over. The caller holds mu.
func (b *broadcaster) endGap() {
	if !b.gapEnd.IsZero() && !time.Now().Before(b.gapEnd) {
		b.missed, b.gapEnd = nil, time.Time{}
	}
}

// keep adds to what the gap's subscribers are told. The caller holds mu.
func (b *broadcaster) keep(ev *runtimeapi.ContainerEventResponse) {
	if b.endGap(); b.gapEnd.IsZero() {
		return
	}
	if len(b.missed) == eventBacklog {
		b.missed = slices.Delete(b.missed, 0, 1)
	}
	b.missed = append(b.missed, ev)
}

func (b *broadcaster) cancel(sub *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(sub)
}

func (b *broadcaster) drop(sub *subscription) {
	if _, ok := b.subs[sub]; ok {
		delete(b.subs, sub)
		close(sub.queue)
	}
}

// publish says whether anybody got the event, not counting those that may come in
// the time of a gap.
func (b *broadcaster) publish(ev *runtimeapi.ContainerEventResponse) (heard bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keep(ev)
	for sub := range b.subs {
		select {
		case sub.queue <- ev:
			heard = true
		default:
			sub.lagged = true
			b.drop(sub)
		}
	}
	return heard
}

// wanted says whether anybody is told of an event, now or later.
func (b *broadcaster) wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endGap()
	return len(b.subs) > 0 || !b.gapEnd.IsZero()
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for sub := range b.subs {
		b.drop(sub)
	}
}

// emit tells every subscriber what became of the container id, or of the pod
// itself when id is its own, and says whether there was one.
func (s *Service) emit(id string, pod *Pod, kind runtimeapi.ContainerEventType) (heard bool) {
	if !s.events.wanted() {
		return false
	}
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: kind,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   pod.status(),
		ContainersStatuses: s.statusesOf(pod.ID),
	}
	return s.events.publish(ev)
}

// forgetUntold notes that whoever listens now has no need to be told of earlier
// exits: those of a gap come first, and of others it learns by listing.
func (s *Service) forgetUntold() error {
	for _, c := range s.containers.all() {
		if !c.snapshot().Untold {
			continue
		}
		if err := c.update(func(st *ContainerState) error { st.Untold = false; return nil }); err != nil {
			return err
		}
	}
	return nil
}
