package imageservice

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// streamChunk is how many bytes of images one message of a stream holds, unless a single image is larger.
const streamChunk = 1 << 20

// StreamImages is ListImages in messages of bounded size.
func (s *Service) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.filtered(req.GetFilter())
	if err != nil {
		return err
	}
	var chunk []*runtimeapi.Image
	size := 0
	for _, img := range images {
		n := proto.Size(img)
		if len(chunk) > 0 && size+n > streamChunk {
			if err := stream.Send(&runtimeapi.StreamImagesResponse{Images: chunk}); err != nil {
				return err
			}
			chunk, size = nil, 0
		}
		chunk, size = append(chunk, img), size+n
	}
	if len(chunk) == 0 {
		return nil
	}
	return stream.Send(&runtimeapi.StreamImagesResponse{Images: chunk})
}
