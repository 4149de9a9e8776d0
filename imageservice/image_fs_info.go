package imageservice

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
)

// firstUsage is how long an answer waits for what the writable layers take, which the first caller has measured.
const firstUsage = 10 * time.Second

// ImageFsInfo tells what the read-only layers and the writable layers take on the file system of the data root. The answer is made of sums
// that are kept in memory: that of the writable layers may be half a minute old. The first answer waits for it; it is left out only if
// measuring takes longer than ten seconds. The error is that of the context.
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

// filesystem says that u is taken on the file system of the data root. cAdvisor resolves any path on it to the mount point.
func (s *Service) filesystem(u overlay.Usage, at time.Time) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.root},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}
