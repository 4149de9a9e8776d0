package imageservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"
)

// PullImage pulls an image, or joins a pull of it, and returns its ID. Errors are those of Pull. If
// the registry is unavailable, the error is also crierrors.ErrRegistryUnavailable, which the
// kubelet handles. PullImage does not use the sandbox's configuration.
func (s *Service) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	spec := req.GetImage()
	if h := spec.GetRuntimeHandler(); h != "" && s.options().RuntimeHandlers != nil && !slices.Contains(s.options().RuntimeHandlers, h) {
		return nil, fmt.Errorf("pull image %q: runtime handler %q is unknown: %w", spec.GetImage(), h, errdefs.ErrInvalidArgument)
	}
	img, err := s.Pull(ctx, PullArgs{Ref: spec.GetImage(), Auth: req.GetAuth()})
	if errdefs.IsUnavailable(err) {
		return nil, fmt.Errorf("%w: %w", crierrors.ErrRegistryUnavailable, err)
	}
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).V(2).Info("Pulled image", "reference", spec.GetImage(), "image", img.ID)
	return &runtimeapi.PullImageResponse{ImageRef: img.ID.String()}, nil
}
