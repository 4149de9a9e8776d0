package runtimeservice

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents streams what becomes of pods and containers from now on,
// until the client ends it. In the first minute after a restart of the daemon
// it begins with what happened since the daemon before this one ended, as far
// as pods and containers are still on record: a container that ended meanwhile
// is told as stopped. So is, perhaps once more, one whose end the daemon was about
// to tell when it ended itself. A client that reads too slowly is cut off with
// ErrResourceExhausted and has to list anew.
func (s *Service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	sub, err := s.events.subscribe()
	if err != nil {
		return err
	}
	defer s.events.cancel(sub)
	if err := s.forgetUntold(); err != nil {
		return fmt.Errorf("stream container events: %w", err)
	}
	for {
		select {
		case ev, ok := <-sub.queue:
			if !ok {
				return s.subscriptionEnd(sub)
			}
			if err := stream.Send(ev); err != nil {
				return err
			}
		case <-stream.Context().Done():
			s.flush(sub, stream)
			return nil
		}
	}
}

// flush ends a subscription with what its queue still has: when the daemon stops,
// which ends the stream's context, the client is still there.
func (s *Service) flush(sub *subscription, stream runtimeapi.RuntimeService_GetContainerEventsServer) {
	s.events.cancel(sub)
	for ev := range sub.queue {
		if stream.Send(ev) != nil {
			return // the client has gone
		}
	}
}

func (s *Service) subscriptionEnd(sub *subscription) error {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	if sub.lagged {
		return fmt.Errorf("stream container events: the client lags %d events behind: %w", eventBacklog, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("stream container events: shutting down: %w", errdefs.ErrUnavailable)
}
