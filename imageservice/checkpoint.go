package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/opencontainers/go-digest"
)

// checkpointAnnotations are those by which a manifest says that its image is the checkpoint of the container that it names: CRI-O's, which the
// documentation of Kubernetes has, and the one of all engines.
func checkpointAnnotations() []string {
	return []string{"io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"}
}

// holdsCheckpoint tells whether layers are what an image made of a checkpoint archive has. A manifest alone is not believed: images are known by
// their configuration, so that one that lies would change the image of others.
func (s *Service) holdsCheckpoint(ctx context.Context, chains []digest.Digest) (bool, error) {
	if len(chains) != 1 {
		return false, nil
	}
	stream, err := s.layers.TarStream(ctx, chains[0])
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }() // only read from
	wanted := map[string]bool{"config.dump": true, "spec.dump": true}
	for in := tar.NewReader(stream); len(wanted) > 0; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read layer %s: %w", chains[0], err)
		}
		delete(wanted, path.Clean(h.Name))
	}
	return true, nil
}
