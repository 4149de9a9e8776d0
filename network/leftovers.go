package network

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Leftover is a file or rule on the node that no pod needs.
type Leftover struct {
	// Path is its file, or a description of where it is; What says what it is.
	Path, What string
}

// Leftovers finds attachment records, and leases of the default network, whose pod is not in live,
// and records that cannot be read. It only reads files, so it also works while the daemon is
// stopped. A pod that is being attached or detached at that moment may be reported. Invalid options
// are errdefs.ErrInvalidArgument. It is safe for concurrent use.
func (o Options) Leftovers(live []string) ([]Leftover, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	r := records{dir: filepath.Join(o.CacheDir, "attachments")}
	ids, err := r.ids()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var leftovers []Leftover
	for _, id := range ids {
		if !slices.Contains(live, id) {
			leftovers = append(leftovers, Leftover{r.path(id), "attachment without a pod"})
		} else if _, err := r.read(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			leftovers = append(leftovers, Leftover{r.path(id), "unreadable attachment: " + err.Error()})
		}
	}
	if o.Default == nil {
		return leftovers, nil
	}
	leased, err := o.Default.leases().owners()
	for _, path := range slices.Sorted(maps.Keys(leased)) {
		if !slices.Contains(live, leased[path]) {
			leftovers = append(leftovers, Leftover{path, fmt.Sprintf("lease of unknown pod %q", leased[path])})
		}
	}
	return leftovers, err
}

// owners returns the container ID of each lease, by the path of the lease file. A missing directory
// has no leases.
func (l leases) owners() (map[string]string, error) {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	owners := map[string]string{}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue // the lock, or last_reserved_ip.N
		}
		path := filepath.Join(l.dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		id, _, _ := strings.Cut(string(data), "\n")
		owners[path] = strings.TrimSpace(id)
	}
	return owners, nil
}
