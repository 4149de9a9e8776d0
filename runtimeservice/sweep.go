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

// leftover is something on the node whose pod or container does not exist.
type leftover struct {
	stage       sweepStage
	what, where string
	remove      func(context.Context) error
}

// sweepStage orders the removals.
type sweepStage int

const (
	processStage sweepStage = iota // processes
	fileStage                      // files, mounts and cgroups
)

// sweep removes the leftovers that recover found, and those of the layer store and the network. It
// cannot remove what requests make meanwhile, which has new IDs, nor what is being recovered, which
// has a record. Networks go before namespaces, because plugins use the namespaces to find their
// interfaces.
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

// sweepLayers removes the layers that were half made when the daemon died. Removing a large one
// takes minutes, so only Close waits for it.
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

// bounded calls f with the timeout of a tear-down.
func (s *Service) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
	defer cancel()
	return f(ctx)
}

// removeLeftovers removes the leftovers of one stage concurrently, each under its own deadline.
func (s *Service) removeLeftovers(ctx context.Context, found []leftover, stage sweepStage) {
	log := klog.FromContext(ctx)
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for _, l := range found {
		if l.stage != stage {
			continue
		}
		log.Info("Removing leftover without a record", "what", l.what, "where", l.where)
		s.operations.Note("remove leftover", operations.Subject{}, l.what+" "+l.where)
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
			defer cancel()
			if err := l.remove(ctx); err != nil {
				log.Error(err, "Removing leftover failed, the next start tries again", "what", l.what, "where", l.where)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// mayHaveNetwork returns the pods that may have a network: pods that are not stopped, and those
// whose recovery is going to detach them.
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

// leftovers finds what has no record: processes of the keeper, writable layers, state directories
// with their mounts and namespaces, checkpoints, discarded records, cgroups.
func (s *Service) leftovers(alive map[string]keeper.State) ([]leftover, error) {
	var found []leftover
	for id := range alive {
		if !s.claimed(id) {
			found = append(found, leftover{processStage, "process", id, func(ctx context.Context) error { return s.keeper.Delete(ctx, id) }})
		}
	}
	for _, rw := range s.layers.RWs() {
		// In a data root taken over from dockerd, its containers have layers too.
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

// leftoverJobs finds directories of checkpoints that are not under way.
func (s *Service) leftoverJobs() ([]leftover, error) {
	dirs, err := os.ReadDir(s.jobsDir())
	if errors.Is(err, os.ErrNotExist) { // as before the first start
		return nil, nil
	}
	var found []leftover
	for _, d := range dirs {
		dir := filepath.Join(s.jobsDir(), d.Name())
		if _, ok := s.jobs.Load(d.Name()); !ok {
			found = append(found, leftover{fileStage, "checkpoint", dir, func(ctx context.Context) error { return overlay.RemoveTree(ctx, dir) }})
		}
	}
	return found, err
}

// discarded finds the record directories that setAside moved away, in this start or an earlier one.
func (s *Service) discarded() ([]leftover, error) {
	dirs, err := os.ReadDir(s.discardedDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var found []leftover
	for _, d := range dirs {
		dir := filepath.Join(s.discardedDir(), d.Name())
		found = append(found, leftover{fileStage, "record directory", dir, func(ctx context.Context) error { return overlay.RemoveTree(ctx, dir) }})
	}
	return found, err
}

func (s *Service) claimed(id string) bool {
	_, podErr := s.pods.get(id)
	_, containerErr := s.containers.get(id)
	return podErr == nil || containerErr == nil
}

// clearStateDir removes a state directory without a record. If it has a network namespace, it first
// detaches that from the network, without the record's data.
func (s *Service) clearStateDir(ctx context.Context, dir string) error {
	if netNS := filepath.Join(dir, podns.Net); isNamespace(netNS) {
		if err := s.network.Del(ctx, network.Pod{ID: filepath.Base(dir), NetNS: netNS}); err != nil && !errors.Is(err, network.ErrPluginMissing) {
			return err
		}
	}
	return clearDir(ctx, dir)
}

// clearDir removes a pod's or a container's state directory, and all mounts in it.
func clearDir(ctx context.Context, dir string) error {
	if err := errors.Join(podns.Unpin(dir), mounts.DetachBelow(dir)); err != nil {
		return err
	}
	return overlay.RemoveTree(ctx, dir)
}

// leftoverCgroups finds cgroups with this daemon's mark whose pod does not exist.
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
