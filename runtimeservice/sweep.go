package runtimeservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/podns"
)

// leftover is something that should have a pod or a container and has none.
type leftover struct {
	stage       sweepStage
	what, where string
	remove      func(context.Context) error
}

// sweepStage orders the removals.
type sweepStage int

const (
	processStage sweepStage = iota // what runs
	fileStage                      // what it ran in
)

// sweep removes what no record claimed before the first request was served: found, and
// leftovers in the layer store and the network. What requests make meanwhile has new IDs,
// and what is still being recovered has a record. The network goes before the namespaces:
// plugins find by them what they have made.
func (s *Service) sweep(ctx context.Context, found []leftover) {
	ctx, op := s.operations.Begin(ctx, "sweep", operations.Subject{})
	operations.Enter(ctx, "remove processes")
	s.removeLeftovers(ctx, found, processStage)
	operations.Enter(ctx, "collect networks")
	networkErr := s.bounded(ctx, func(ctx context.Context) error { return s.network.GC(ctx, s.mayHaveNetwork()) })
	operations.Enter(ctx, "remove files and cgroups")
	s.removeLeftovers(ctx, found, fileStage)
	operations.Enter(ctx, "collect layers")
	err := errors.Join(networkErr, s.bounded(ctx, s.images.Sweep))
	if op.End(err); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Leftovers of networks or layers stay until the next start")
	}
}

// sweepLayers removes the layers that were half made when the daemon died. A large one takes
// the disk minutes, so that nothing waits for it but the end of the service.
func (s *Service) sweepLayers(ctx context.Context) {
	if !s.layers.Abandoned() {
		return
	}
	ctx, op := s.operations.Begin(ctx, "sweep layers", operations.Subject{})
	operations.Enter(ctx, "remove half-made layers")
	err := s.layers.Sweep(ctx)
	if op.End(err); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Half-made layers stay until the next start")
	}
}

// bounded calls f with the time-out of a tear-down.
func (s *Service) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	return f(ctx)
}

// removeLeftovers removes those of one stage at the same time, each under a deadline of
// its own.
func (s *Service) removeLeftovers(ctx context.Context, found []leftover, stage sweepStage) {
	log := klog.FromContext(ctx)
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for _, l := range found {
		if l.stage != stage {
			continue
		}
		log.Info("Removing what no record claims", "what", l.what, "where", l.where)
		s.operations.Note("remove leftover", operations.Subject{}, l.what+" "+l.where)
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
			defer cancel()
			if err := l.remove(ctx); err != nil {
				log.Error(err, "Leftover stays until the next start", "what", l.what, "where", l.where)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// mayHaveNetwork returns the pods whose network is theirs: those that are ready, and
// those whose recovery is going to delete it.
func (s *Service) mayHaveNetwork() []string {
	unfinished := s.recoveries.unfinished()
	var ids []string
	for _, p := range s.pods.all() {
		_, recovering := unfinished[p.ID]
		if (p.snapshot().Phase != PodNotReady || recovering) && !p.hostNetwork() {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// leftovers finds what no record claims: processes of the keeper, writable
// layers, state directories with their mounts and namespaces, cgroups.
func (s *Service) leftovers(alive map[string]keeper.State) ([]leftover, error) {
	var found []leftover
	for id := range alive {
		if !s.claimed(id) {
			found = append(found, leftover{processStage, "process", id, func(ctx context.Context) error { return s.keeper.Delete(ctx, id) }})
		}
	}
	for _, rw := range s.layers.RWs() {
		// In an adopted data root dockerd's containers have layers too.
		_, err := s.containers.get(rw.ID)
		_, aside := s.unusable.get(containerKind, rw.ID)
		if err != nil && !aside && !exists(filepath.Join(s.opts.DataDir, "containers", rw.ID)) {
			found = append(found, leftover{fileStage, "writable layer", rw.ID, func(ctx context.Context) error { return s.layers.Remove(ctx, rw.ID) }})
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
				found = append(found, leftover{fileStage, "state directory", dir, func(ctx context.Context) error { return s.clearStateDir(ctx, dir) }})
			}
		}
	}
	jobs, err := s.leftoverJobs()
	found = append(found, jobs...)
	errs = append(errs, err)
	discarded, err := s.discarded()
	found = append(found, discarded...)
	errs = append(errs, err)
	cgroups, err := s.leftoverCgroups()
	return append(found, cgroups...), errors.Join(append(errs, err)...)
}

// leftoverJobs finds directories of checkpoints that nobody is making.
func (s *Service) leftoverJobs() ([]leftover, error) {
	dirs, err := os.ReadDir(s.jobsDir())
	if errors.Is(err, os.ErrNotExist) { // as before the first start
		return nil, nil
	}
	var found []leftover
	for _, d := range dirs {
		dir := filepath.Join(s.jobsDir(), d.Name())
		if _, ok := s.jobs.Load(d.Name()); !ok {
			found = append(found, leftover{fileStage, "checkpoint", dir, func(context.Context) error { return overlay.RemoveTree(dir) }})
		}
	}
	return found, err
}

// discarded finds what setAside moved out of the way, in this start or before.
func (s *Service) discarded() ([]leftover, error) {
	dirs, err := os.ReadDir(s.discardedDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var found []leftover
	for _, d := range dirs {
		dir := filepath.Join(s.discardedDir(), d.Name())
		found = append(found, leftover{fileStage, "record directory", dir, func(context.Context) error { return overlay.RemoveTree(dir) }})
	}
	return found, err
}

func (s *Service) claimed(id string) bool {
	_, podErr := s.pods.get(id)
	_, containerErr := s.containers.get(id)
	return podErr == nil || containerErr == nil
}

// clearStateDir is clearDir of a pod or container without a record. Of a pod it detaches
// the network first, by what is known without the record.
func (s *Service) clearStateDir(ctx context.Context, dir string) error {
	if netNS := filepath.Join(dir, podns.Net); isNamespace(netNS) {
		if err := s.network.Del(ctx, network.Pod{ID: filepath.Base(dir), NetNS: netNS}); err != nil && !errors.Is(err, network.ErrPluginMissing) {
			return err
		}
	}
	return clearDir(dir)
}

// clearDir takes away a pod's or a container's state directory with everything
// that is mounted in it.
func clearDir(dir string) error {
	if err := errors.Join(podns.Unpin(dir), mounts.DetachBelow(dir)); err != nil {
		return err
	}
	return overlay.RemoveTree(dir)
}

// leftoverCgroups finds cgroups of pods that bear this daemon's mark and have no
// pod.
func (s *Service) leftoverCgroups() ([]leftover, error) {
	owner, err := s.owner()
	if err != nil {
		return nil, err
	}
	paths, err := s.cgroups.ListPods(owner)
	var found []leftover
	for id, path := range paths {
		if _, getErr := s.pods.get(id); getErr != nil {
			found = append(found, leftover{fileStage, "cgroup", path, func(ctx context.Context) error {
				return errors.Join(s.cgroups.KillAll(ctx, path), s.cgroups.RemoveParent(ctx, path))
			}})
		}
	}
	return found, err
}
