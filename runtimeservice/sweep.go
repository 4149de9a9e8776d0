package runtimeservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/journal"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/podns"
)

// leftover is something that should have a pod or a container and has none.
type leftover struct {
	what, where string
	remove      func(context.Context) error
}

// sweep removes everything that no record claims. It runs at start, after the
// records are settled and before a request is served, so nothing is just being
// made.
func (s *Service) sweep(ctx context.Context, alive map[string]keeper.State) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	log := klog.FromContext(ctx)
	found, err := s.leftovers(alive)
	if err != nil {
		log.Error(err, "Search for leftovers is incomplete")
	}
	for _, l := range found {
		log.Info("Removing what no record claims", "what", l.what, "where", l.where)
		s.journal.Note("remove what no record claims", journal.Subject{}, l.what+" "+l.where)
		if err := l.remove(ctx); err != nil {
			log.Error(err, "Leftover stays until the next start", "what", l.what, "where", l.where)
		}
	}
	if err := s.images.Sweep(ctx); err != nil {
		log.Error(err, "Layers that nothing needs stay until the next start")
	}
	var live []string
	for _, p := range s.pods.all() {
		if p.snapshot().Phase == PodReady && !p.hostNetwork() {
			live = append(live, p.ID)
		}
	}
	if err := s.network.GC(ctx, live); err != nil {
		log.Error(err, "Network leftovers stay until the next start")
	}
}

// leftovers finds what no record claims: processes of the keeper, writable
// layers, state directories with their mounts and namespaces, cgroups.
func (s *Service) leftovers(alive map[string]keeper.State) ([]leftover, error) {
	var found []leftover
	for id := range alive {
		if !s.claimed(id) {
			found = append(found, leftover{"process", id, func(ctx context.Context) error { return s.keeper.Delete(ctx, id) }})
		}
	}
	for _, rw := range s.layers.RWs() {
		// In an adopted data root dockerd's containers have layers too.
		if _, err := s.containers.get(rw.ID); err != nil && !exists(filepath.Join(s.opts.DataDir, "containers", rw.ID)) {
			found = append(found, leftover{"writable layer", rw.ID, func(ctx context.Context) error { return s.layers.Remove(ctx, rw.ID) }})
		}
	}
	var errs []error
	for _, kind := range []string{"pods", "containers"} {
		dirs, err := os.ReadDir(filepath.Join(s.opts.StateDir, kind))
		if !errors.Is(err, os.ErrNotExist) { // as before the first start after a boot
			errs = append(errs, err)
		}
		for _, d := range dirs {
			dir := filepath.Join(s.opts.StateDir, kind, d.Name())
			if !s.claimed(d.Name()) {
				found = append(found, leftover{"state directory", dir, func(context.Context) error { return clearDir(dir) }})
			}
		}
	}
	jobs, err := s.strayJobs()
	found = append(found, jobs...)
	errs = append(errs, err)
	cgroups, err := s.strayCgroups()
	return append(found, cgroups...), errors.Join(append(errs, err)...)
}

// strayJobs finds directories of checkpoints that nobody is making.
func (s *Service) strayJobs() ([]leftover, error) {
	dirs, err := os.ReadDir(s.jobsDir())
	if errors.Is(err, os.ErrNotExist) { // as before the first start
		return nil, nil
	}
	var found []leftover
	for _, d := range dirs {
		dir := filepath.Join(s.jobsDir(), d.Name())
		if _, ok := s.jobs.Load(d.Name()); !ok {
			found = append(found, leftover{"checkpoint", dir, func(context.Context) error { return os.RemoveAll(dir) }})
		}
	}
	return found, err
}

func (s *Service) claimed(id string) bool {
	_, podErr := s.pods.get(id)
	_, containerErr := s.containers.get(id)
	return podErr == nil || containerErr == nil
}

// clearDir takes away a pod's or a container's state directory with everything
// that is mounted in it.
func clearDir(dir string) error {
	if err := errors.Join(podns.Unpin(dir), unmountBelow(dir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// strayCgroups finds pod cgroups of ours without a pod.
func (s *Service) strayCgroups() ([]leftover, error) {
	paths, err := s.cgroups.ListPods()
	var found []leftover
	for id, path := range paths {
		if _, getErr := s.pods.get(id); getErr != nil {
			found = append(found, leftover{"cgroup", path, func(ctx context.Context) error {
				return errors.Join(s.cgroups.KillAll(ctx, path), s.cgroups.RemoveParent(ctx, path))
			}})
		}
	}
	return found, err
}
