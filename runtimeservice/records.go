package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/runtimeservice/spec/lookup"
)

// errNoRecord is the error for a directory without a record, or with an empty one. A killed daemon
// or a power cut leaves it of an object that no client has seen.
var errNoRecord = errors.New("there is no record")

// discard moves a directory to the discarded ones, which the sweep deletes.
func (s *Service) discard(dir string) error {
	if err := makeDir(s.discardedDir(), privateMode); err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(s.discardedDir(), newID()[:16]))
}

// loadPods reads all pod records into the table.
func (s *Service) loadPods(ctx context.Context, bad unusableFunc) error {
	return eachRecord(s.podsDir(), func(dir string) error {
		p, err := s.loadPod(dir)
		if err == nil {
			err = s.pods.add(p)
		}
		if err != nil {
			return bad(ctx, unusable{kind: podKind, dir: dir, id: filepath.Base(dir), pod: p, err: err})
		}
		return nil
	})
}

// loadPod reads the pod in dir. If only its record can be used, it returns the pod and an error.
func (s *Service) loadPod(dir string) (*Pod, error) {
	var rec PodRecord
	if err := readRecord(dir, &rec); err != nil {
		return nil, err
	}
	if rec.ID != filepath.Base(dir) || rec.Config.Msg == nil {
		return nil, errors.New("record of another pod")
	}
	p := newPod(dir, rec)
	if err := lookup.ReserveSELinux(rec.SELinux); err != nil {
		return p, err
	}
	// If the state is torn or missing, no client has got an answer about it, or it is of an earlier
	// boot. settlePod handles the exception, a pod that podStands is true of.
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
			return bad(ctx, unusable{kind: containerKind, dir: dir, id: filepath.Base(dir), container: c, err: err})
		}
		return nil
	})
}

// loadContainer reads the container in dir. If only its record can be used, it returns the
// container and an error.
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
		if _, there := s.unusable.get(podKind, rec.PodID); !there && errdefs.IsNotFound(err) {
			return c, fmt.Errorf("its pod: %w: %w", errNoRecord, err) // removed with the pod
		}
		return c, fmt.Errorf("its pod: %w", err)
	}
	err := jsonfile.Read(filepath.Join(dir, stateFile), &c.state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.state = ContainerState{Ready: true} // torn by a power cut, so of an earlier boot
	}
	if err := lookup.ReserveSELinux(c.state.SELinux); err != nil {
		return c, err
	}
	if c.phase() == Exited {
		close(c.exited)
	} else {
		s.holdMounted(ctx, c)
	}
	return c, nil
}

// readRecord reads the record in a directory. If the record was never written completely, it
// returns errNoRecord.
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
