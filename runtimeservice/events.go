package runtimeservice

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBacklog is how many events a subscriber may lag behind.
const eventBacklog = 1000

// broadcaster hands events to every subscriber, in order. A subscriber that
// lags too far is cut off, so that it lists anew, rather than missing some.
type broadcaster struct {
	mu     sync.Mutex // guards the rest; never held while waiting
	subs   map[*subscription]struct{}
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
	sub := &subscription{queue: make(chan *runtimeapi.ContainerEventResponse, eventBacklog)}
	b.subs[sub] = struct{}{}
	return sub, nil
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

func (b *broadcaster) publish(ev *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for sub := range b.subs {
		select {
		case sub.queue <- ev:
		default:
			sub.lagged = true
			b.drop(sub)
		}
	}
}

func (b *broadcaster) listening() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
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
// itself when id is its own.
func (s *Service) emit(id string, pod *Pod, kind runtimeapi.ContainerEventType) {
	if !s.events.listening() {
		return
	}
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: kind,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   pod.status(),
		ContainersStatuses: s.statusesOf(pod.ID),
	}
	s.events.publish(ev)
}
