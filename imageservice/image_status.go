package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verboseInfo is the JSON under the key "info" of a verbose ImageStatus. ChainID and ImageSpec have
// the same names as in containerd.
type verboseInfo struct {
	ChainID   digest.Digest   `json:"chainID"`
	ChainIDs  []digest.Digest `json:"chainIDs"`
	ImageSpec ocispec.Image   `json:"imageSpec"`
}

// ImageStatus describes an image. If the image is absent, the answer has none, without an error.
func (s *Service) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.Get(req.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	c := toCRI(img)
	// The answer repeats the rest of the caller's specification. Its image stays the ID, so that
	// every reference to an image gets the same answer.
	c.Spec.UserSpecifiedImage = req.GetImage().GetUserSpecifiedImage()
	c.Spec.Annotations = maps.Clone(req.GetImage().GetAnnotations())
	resp := &runtimeapi.ImageStatusResponse{Image: c}
	if req.GetVerbose() {
		d, err := s.Detail(img.ID.String())
		if errdefs.IsNotFound(err) { // removed since
			return &runtimeapi.ImageStatusResponse{}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("describe image %s: %w", img.ID, err)
		}
		info, err := json.Marshal(verboseInfo{ChainID: img.Top(), ChainIDs: img.Layers, ImageSpec: d.Config})
		if err != nil {
			return nil, fmt.Errorf("describe image %s: %w", img.ID, err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}
