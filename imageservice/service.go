package imageservice

import (
	"context"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
)

// Service is an open image store.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer
}

// Open reads the images below o.Root. layers must stay open until Close has returned.
func Open(ctx context.Context, o Options, layers *overlay.Store) (*Service, error) {
	return nil, errdefs.ErrNotImplemented
}

// Close ends all pulls and waits for them.
func (s *Service) Close() error { return errdefs.ErrNotImplemented }

// PullArgs says what to pull.
type PullArgs struct {
	Ref  string                 // reference as users write it: busybox, host:5000/ns/name:tag, name@sha256:…
	Auth *runtimeapi.AuthConfig // credentials; nil for those of Options.DockerConfig or none
	// Progress, when set, is called from the goroutine of the caller of Pull, about ten times a second, with layers that have moved.
	Progress func(LayerProgress)
}

// LayerProgress is how far a layer of a pull has come.
type LayerProgress struct{}

// Pull makes the image of a reference present and returns it.
func (s *Service) Pull(ctx context.Context, a PullArgs) (Image, error) {
	return Image{}, errdefs.ErrNotImplemented
}

// List returns all images, newest first.
func (s *Service) List() []Image { return nil }

// Get finds an image by tag, digest reference, ID or unique prefix of an ID.
func (s *Service) Get(ref string) (Image, error) { return Image{}, errdefs.ErrNotImplemented }

// Remove takes an image and all its references away, and then the layers that nothing else needs. It is idempotent.
func (s *Service) Remove(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }

// Check compares imagedb, repositories.json, the layer store and the distribution metadata with each other.
func (s *Service) Check(ctx context.Context) ([]overlay.Problem, error) {
	return nil, errdefs.ErrNotImplemented
}
