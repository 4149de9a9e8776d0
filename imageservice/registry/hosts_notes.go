package registry

import (
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

// hostNotes has the unknown keys of a hosts.toml.
type hostNotes struct {
	file    string // "": there is no hosts.toml
	content []byte
	ignored []string // keys with their lines
}

// ignoredKeys logs the unknown keys of each hosts.toml once for each content of the file.
type ignoredKeys struct {
	mu     sync.Mutex               // guards logged
	logged map[string]digest.Digest // file → content
}

// report logs unknown keys unless it has logged them for this content of the file.
func (k *ignoredKeys) report(log klog.Logger, n hostNotes) {
	if n.file == "" {
		return
	}
	content := digest.FromBytes(n.content)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.logged == nil {
		k.logged = make(map[string]digest.Digest)
	}
	if k.logged[n.file] == content {
		return
	}
	k.logged[n.file] = content
	if len(n.ignored) > 0 {
		log.Info("Ignoring unknown keys of a registry configuration", "file", n.file, "keys", strings.Join(n.ignored, ", "))
	}
}
