package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/runtimeservice/checkpoint"
	"github.com/micarun/mica/runtimeservice/spec"
)

// checkpointer is the runtime and the CRIU that checkpoint and restore containers of a handler.
type checkpointer struct {
	handler
	criu checkpoint.Program
}

// checkpointer returns ErrFailedPrecondition with the reason if this node cannot checkpoint and
// restore containers of the handler.
func (s *Service) checkpointer(ctx context.Context, handlerName string) (checkpointer, error) {
	h, err := s.handler(handlerName)
	if err != nil {
		return checkpointer{}, err
	}
	if err := h.CanCheckpoint(ctx, h.features.oci); err != nil {
		return checkpointer{}, err
	}
	criu, err := s.criu.Ready(ctx)
	return checkpointer{handler: h, criu: criu}, err
}

// checkRestore returns ErrFailedPrecondition for a kind of container that CRIU can dump but not
// restore.
func checkRestore(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) error {
	reason := ""
	switch c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() {
	case runtimeapi.NamespaceMode_NODE:
		reason = "it shares the node's process IDs, which may be taken by the time of a restore"
	case runtimeapi.NamespaceMode_TARGET:
		reason = "it shares another container's process IDs"
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER:
	}
	if spec.PodUserNamespace(pod) != nil {
		reason = "its pod has a user namespace"
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("container %q cannot be restored: %s: %w", c.GetMetadata().GetName(), reason, errdefs.ErrFailedPrecondition)
}
