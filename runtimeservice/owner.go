package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/micarun/mica/internal/jsonfile"
)

// ownerRecord identifies a data root. The cgroups of its pods are marked with the ID. A daemon with
// another data root and the same default parent does not touch them.
type ownerRecord struct{ ID string }

// owner returns the ID of the data root, "" if no daemon has used it yet.
func (v *inventory) owner() (string, error) {
	var rec ownerRecord
	err := jsonfile.Read(v.paths.Owner(), &rec)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read ID of the data root: %w", err)
	}
	return rec.ID, nil
}

// makeOwner writes an ID if the data root has none that can be read. The cgroups marked with an
// unreadable ID stay.
func (s *Service) makeOwner() error {
	if id, err := s.owner(); err == nil && id != "" {
		return nil
	}
	if err := jsonfile.WriteSync(s.paths.Owner(), ownerRecord{ID: newID()[:32]}); err != nil {
		return fmt.Errorf("write ID of the data root: %w", err)
	}
	return nil
}

// makePodCgroup makes the pod's cgroup, and marks it if the service manages it. If the daemon dies
// in between, the pod's record identifies the cgroup.
func (s *Service) makePodCgroup(ctx context.Context, p *Pod) error {
	if !p.Record().OwnCgroup {
		_, err := s.cgroups.EnsureParent(ctx, p.CgroupParent())
		return err
	}
	return s.makeOwnCgroup(ctx, p.CgroupParent())
}

// makeOwnCgroup makes a cgroup below the default parent, and marks it.
func (s *Service) makeOwnCgroup(ctx context.Context, path string) error {
	owner, err := s.owner()
	if err != nil {
		return err
	}
	if err := s.cgroups.EnsureDefault(ctx, owner); err != nil {
		return err
	}
	if _, err := s.cgroups.EnsureParent(ctx, path); err != nil {
		return err
	}
	return s.cgroups.Mark(path, owner)
}

// removeDefaultCgroup removes the default parent of pods' cgroups, unless another daemon or other
// software made it, or it has child cgroups.
func (s *Service) removeDefaultCgroup() error {
	owner, err := s.owner()
	if err != nil {
		return err
	}
	return s.cgroups.RemoveDefault(owner)
}
