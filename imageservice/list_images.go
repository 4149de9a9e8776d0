package imageservice

import (
	"context"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/chunks"
)

// ListImages returns all images, or the one that the filter names by reference, ID or ID prefix. If
// no image matches the filter, the list is empty.
func (s *Service) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.filtered(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

// StreamImages is ListImages with messages of bounded size.
func (s *Service) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.filtered(req.GetFilter())
	if err != nil {
		return err
	}
	return chunks.Send(images, func(chunk []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: chunk})
	})
}

func (s *Service) filtered(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	list := s.List()
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.Get(ref)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		list = []Image{img}
	}
	images := make([]*runtimeapi.Image, 0, len(list))
	for _, img := range list {
		images = append(images, toCRI(img))
	}
	return images, nil
}

// toCRI converts an image.
func toCRI(img Image) *runtimeapi.Image {
	c := &runtimeapi.Image{
		Id:          img.ID.String(),
		RepoTags:    img.Tags,
		RepoDigests: img.Digests,
		Size:        uint64(max(1, img.Size)), // the CRI does not permit 0
		Spec:        &runtimeapi.ImageSpec{Image: img.ID.String()},
		Pinned:      img.Pinned,
	}
	uid, name := img.UserOrUID()
	c.Username = name
	if uid != nil {
		c.Uid = &runtimeapi.Int64Value{Value: *uid}
	}
	return c
}
