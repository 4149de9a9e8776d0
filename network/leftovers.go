package network

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
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
	leased, err := o.Default.leases().Owners()
	for _, path := range slices.Sorted(maps.Keys(leased)) {
		if !slices.Contains(live, leased[path]) {
			leftovers = append(leftovers, Leftover{path, fmt.Sprintf("lease of unknown pod %q", leased[path])})
		}
	}
	return leftovers, err
}
