package imageservice

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verboseInfo is the JSON under the key "info" of a verbose ImageStatus. ChainID and ImageSpec are what crictl's users know from containerd.
type verboseInfo struct {
	ChainID   digest.Digest   `json:"chainID"`
	ChainIDs  []digest.Digest `json:"chainIDs"`
	ImageSpec ocispec.Image   `json:"imageSpec"`
}

// ImageStatus describes an image; one that is absent is no error but nil.
func (s *Service) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.Get(req.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	c := toCRI(img)
	c.Spec = proto.CloneOf(req.GetImage())
	resp := &runtimeapi.ImageStatusResponse{Image: c}
	if req.GetVerbose() {
		info, err := json.Marshal(verboseInfo{ChainID: img.Top(), ChainIDs: img.Layers, ImageSpec: img.Config})
		if err != nil {
			return nil, fmt.Errorf("describe image %s: %w", img.ID, err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}
