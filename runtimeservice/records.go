package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/spec"
)

// errNoRecord says that a directory of records has no record, or an empty one: what a
// killed daemon or a power cut leaves of an object that was never shown to anybody.
var errNoRecord = errors.New("there is no record")

// unusable is a record that is there and cannot be used.
type unusable struct {
	dir   string
	id    string
	podID string // of a container, where it is known
	err   error
}

// unusableFunc handles a record that cannot be loaded. Its error ends the loading.
type unusableFunc func(ctx context.Context, u unusable) error

// unusables are the records that the start could not use. What lived by them is torn
// down; they and the writable layers stay on the disk until they are removed by ID. The
// nil pointer has none. It is safe for concurrent use.
type unusables struct {
	mu   sync.Mutex // guards byID
	byID map[string]unusable
}

func newUnusables() *unusables { return &unusables{byID: map[string]unusable{}} }

func (u *unusables) add(r unusable) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.byID[r.id] = r
}

func (u *unusables) remove(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.byID, id)
}

// get finds the record by its full ID.
func (u *unusables) get(id string) (unusable, bool) {
	if u == nil {
		return unusable{}, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r, ok := u.byID[id]
	return r, ok
}

// all returns the records, ordered by directory.
func (u *unusables) all() []unusable {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.SortedFunc(maps.Values(u.byID), func(a, b unusable) int { return cmp.Compare(a.dir, b.dir) })
}

// UnusableRecords counts the records that are there and cannot be used.
func (s *Service) UnusableRecords() int { return len(s.unusable.all()) }

// setAside moves a record that was never whole, which belongs to nothing that was shown
// to anybody, out of the way, and keeps every other one for who can repair it. The sweep
// deletes what was moved: a start does not wait for volumes with many files.
func (s *Service) setAside(ctx context.Context, u unusable) error {
	log := klog.FromContext(ctx)
	if errors.Is(u.err, errNoRecord) {
		log.Info("Removing what has no record", "directory", u.dir, "reason", u.err.Error())
		if err := s.discard(u.dir); err != nil {
			return fmt.Errorf("remove %s: %w", u.dir, err)
		}
		return nil
	}
	log.Error(u.err, "Record cannot be used: what lives by it is torn down, its files stay until it is removed", "record", u.dir)
	s.unusable.add(u)
	return nil
}

// discard moves a directory to those that the sweep deletes.
func (s *Service) discard(dir string) error {
	if err := makeDir(s.discardedDir(), privateMode); err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(s.discardedDir(), newID()[:16]))
}

// removeUnusable removes an object whose record cannot be used, and of a pod its
// containers, with their writable layers. An unknown ID is no error.
func (s *Service) removeUnusable(ctx context.Context, id string) error {
	u, ok := s.unusable.get(id)
	if !ok {
		return nil
	}
	select {
	case <-s.recoveries.over: // until then what lives by it is being torn down
	case <-ctx.Done():
		return fmt.Errorf("remove %s: wait for the end of the start's sweep: %w", id, ctx.Err())
	}
	for _, c := range s.unusable.all() {
		if c.podID == id {
			if err := s.removeUnusable(ctx, c.id); err != nil {
				return err
			}
		}
	}
	if err := s.layers.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove writable layer of %s: %w", id, err)
	}
	if err := overlay.RemoveTree(u.dir); err != nil {
		return fmt.Errorf("remove unusable record: %w", err)
	}
	s.unusable.remove(id)
	return nil
}

// loadPods reads all pod records into the table.
func (s *Service) loadPods(ctx context.Context, bad unusableFunc) error {
	return eachRecord(s.podsDir(), func(dir string) error {
		p, err := s.loadPod(dir)
		if err == nil {
			err = s.pods.add(p)
		}
		if err != nil {
			return bad(ctx, unusable{dir: dir, id: filepath.Base(dir), err: err})
		}
		return nil
	})
}

func (s *Service) loadPod(dir string) (*Pod, error) {
	var rec PodRecord
	if err := readRecord(dir, &rec); err != nil {
		return nil, err
	}
	if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
		return nil, errors.New("record of another pod")
	}
	if err := spec.ReserveSELinux(rec.SELinux); err != nil {
		return nil, err
	}
	p := newPod(dir, rec)
	// A torn or missing state was never answered to anybody or belongs to an earlier
	// boot, unless the pod still stands; see settlePod.
	if err := jsonfile.Read(filepath.Join(dir, stateFile), &p.state); err != nil {
		p.state = PodState{Phase: PodCreating}
	}
	return p, nil
}

// loadContainers reads all container records into the table.
func (s *Service) loadContainers(ctx context.Context, bad unusableFunc) error {
	return eachRecord(s.containersDir(), func(dir string) error {
		c, err := s.loadContainer(ctx, dir)
		if err == nil {
			err = s.containers.add(c)
		}
		if err != nil {
			u := unusable{dir: dir, id: filepath.Base(dir), err: err}
			if c != nil {
				u.podID = c.PodID
			}
			return bad(ctx, u)
		}
		return nil
	})
}

// loadContainer returns the container also with an error, if its record can be read.
func (s *Service) loadContainer(ctx context.Context, dir string) (*Container, error) {
	var rec ContainerRecord
	if err := readRecord(dir, &rec); err != nil {
		return nil, err
	}
	if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
		return nil, errors.New("record of another container")
	}
	c := newContainer(dir, rec)
	if _, err := s.pods.get(rec.PodID); err != nil {
		if _, there := s.unusable.get(rec.PodID); !there && errdefs.IsNotFound(err) {
			return c, fmt.Errorf("its pod: %w: %w", errNoRecord, err) // it goes with the pod
		}
		return c, fmt.Errorf("its pod: %w", err)
	}
	err := jsonfile.Read(filepath.Join(dir, stateFile), &c.state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.state = ContainerState{Ready: true} // torn by a power cut, so of an earlier boot
	}
	if err := spec.ReserveSELinux(c.state.SELinux); err != nil {
		return c, err
	}
	if c.phase() == Exited {
		close(c.exited)
	} else {
		s.holdMounted(ctx, c)
	}
	return c, nil
}

// readRecord reads the record in a directory. One that was never whole is errNoRecord.
func readRecord(dir string, rec any) error {
	path := filepath.Join(dir, recordFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		return errNoRecord
	}
	return jsonfile.Read(path, rec)
}

// eachRecord calls load for every directory below root.
func eachRecord(root string, load func(dir string) error) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		if err := load(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
