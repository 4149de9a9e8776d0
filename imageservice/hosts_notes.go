package imageservice

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"
	"k8s.io/klog/v2"
)

// decodeHosts reads the tables of a hosts.toml and names the keys that mean nothing here.
// containerd passes over them as well: a file may have been written for a newer version.
func decodeHosts(data []byte) (f hostsFile, ignored []string, err error) {
	decoder := toml.NewDecoder(bytes.NewReader(data))
	err = decoder.DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			ignored = append(ignored, fmt.Sprintf("line %d: %s", line, strings.Join(unknown.Errors[i].Key(), ".")))
		}
		f = hostsFile{}
		err = toml.Unmarshal(data, &f)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, column := bad.Position()
		return hostsFile{}, nil, fmt.Errorf("line %d, column %d: %w: %w", line, column, errdefs.ErrInvalidArgument, err)
	}
	if err != nil {
		return hostsFile{}, nil, fmt.Errorf("decode hosts.toml: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return f, ignored, nil
}

// hostNotes are the keys of a hosts.toml that have no meaning here.
type hostNotes struct {
	file    string
	content []byte
	ignored []string // keys, with their lines
}

// saidOnce remembers which files it has logged, so that each is logged once for each content that
// it has.
type saidOnce struct {
	mu   sync.Mutex
	said map[string]digest.Digest // file → content
}

// ignored logs the keys that were passed over, unless it has done so for this content of the file.
func (s *saidOnce) ignored(log klog.Logger, n hostNotes) {
	if n.file == "" {
		return
	}
	content := digest.FromBytes(n.content)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said == nil {
		s.said = make(map[string]digest.Digest)
	}
	if s.said[n.file] == content {
		return
	}
	s.said[n.file] = content
	if len(n.ignored) > 0 {
		log.Info("Passing over unknown keys of a registry configuration", "file", n.file, "keys", strings.Join(n.ignored, ", "))
	}
}
