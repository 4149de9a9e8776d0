package imageservice

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
)

// firstUsage is the maximum wait for the first measurement of the writable layers.
const firstUsage = 10 * time.Second

// ImageFsInfo returns the disk usage of the read-only and of the writable layers on the file system
// of the data root. It answers from memory. The usage of the writable layers may be half a minute
// old. The first call measures it, and leaves it out if that takes longer than ten seconds. The
// error is ctx's.
func (s *Service) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	resp := &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems: []*runtimeapi.FilesystemUsage{s.filesystem(s.usage.images(), time.Now())},
	}
	u, at, err := s.usage.writable(ctx, firstUsage)
	if err != nil {
		return nil, fmt.Errorf("measure writable layers: %w", err)
	}
	if !at.IsZero() {
		resp.ContainerFilesystems = []*runtimeapi.FilesystemUsage{s.filesystem(u, at)}
	}
	return resp, nil
}

// filesystem returns u as usage of the file system of the data root. cAdvisor resolves any path on
// it to the mount point.
func (s *Service) filesystem(u overlay.Usage, at time.Time) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.root},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}
