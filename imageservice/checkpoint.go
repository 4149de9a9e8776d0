package imageservice

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/opencontainers/go-digest"
)

// checkpointName returns the name of the container if the annotations of a manifest say that the
// image is its checkpoint, otherwise "". The first key is CRI-O's, which the documentation of
// Kubernetes uses; the second is common to all engines.
func checkpointName(annotations map[string]string) string {
	return cmp.Or(annotations["io.kubernetes.cri-o.annotations.checkpoint.name"], annotations["org.criu.checkpoint.container.name"])
}

// holdsCheckpoint reports whether layers have the content of a checkpoint archive. The manifest
// alone is no proof: an image is known by its configuration, so a manifest with false annotations
// would change the image of others.
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
