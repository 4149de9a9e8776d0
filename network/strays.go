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

// Stray is something on the disk that no pod needs.
type Stray struct {
	// Path is the file, and What what it is.
	Path, What string
}

// Strays finds attachments and, with a default network, leases of pods that are
// not among live. It only reads files, and so serves a node whose daemon does
// not run, too. A pod that is just being attached or detached can look like a
// stray.
func (o Options) Strays(live []string) ([]Stray, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	r := records{dir: filepath.Join(o.CacheDir, "attachments")}
	ids, err := r.ids()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var strays []Stray
	for _, id := range ids {
		if !slices.Contains(live, id) {
			strays = append(strays, Stray{r.path(id), "attachment of no pod that has a network"})
		} else if _, err := r.read(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			strays = append(strays, Stray{r.path(id), "attachment that cannot be read: " + err.Error()})
		}
	}
	if o.Default == nil {
		return strays, nil
	}
	leased, err := o.Default.leases().owners()
	for _, path := range slices.Sorted(maps.Keys(leased)) {
		if !slices.Contains(live, leased[path]) {
			strays = append(strays, Stray{path, fmt.Sprintf("lease of %q, which is no pod that has a network", leased[path])})
		}
	}
	return strays, err
}

// owners returns the container IDs that the leases are of, by the path of the
// lease. A directory that is not there has none.
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
			continue // given back just now
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		id, _, _ := strings.Cut(string(data), "\n")
		owners[path] = strings.TrimSpace(id)
	}
	return owners, nil
}
