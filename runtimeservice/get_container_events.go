package runtimeservice

import (
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GetContainerEvents streams events of pods and containers from now on, until the client ends the
// stream. In the first minute after a restart of the daemon the stream begins with what happened
// since the previous daemon ended, for pods and containers that still have a record: a container
// that exited meanwhile is reported as stopped. An exit that the previous daemon was about to
// report when it ended may be reported twice. A client that reads too slowly is disconnected with
// ErrResourceExhausted and has to list again.
func (s *Service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	sub, err := s.events.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Cancel()
	if err := s.forgetUndelivered(); err != nil {
		return fmt.Errorf("stream container events: %w", err)
	}
	return sub.Forward(stream.Context(), stream.Send)
}
