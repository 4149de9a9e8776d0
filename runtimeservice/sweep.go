package runtimeservice

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/internal/operations"
	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/state"
)

// sweep removes the leftovers that recover found, and those of the layer store and the network. It
// cannot remove what requests make meanwhile, which has new IDs, nor what is being recovered, which
// has a record. Networks go before namespaces, because plugins use the namespaces to find their
// interfaces.
func (s *Service) sweep(ctx context.Context, found []leftover) {
	ctx, op := s.operations.Begin(ctx, "sweep", operations.Subject{})
	operations.Enter(ctx, "remove processes")
	s.removeLeftovers(ctx, found, func(k leftoverKind) bool { return k == leftProcess })
	operations.Enter(ctx, "sweep networks")
	networkErr := s.bounded(ctx, func(ctx context.Context) error { return s.network.Sweep(ctx, s.mayHaveNetwork()) })
	operations.Enter(ctx, "remove files and cgroups")
	s.removeLeftovers(ctx, found, func(k leftoverKind) bool { return k != leftProcess })
	operations.Enter(ctx, "sweep layers")
	err := errors.Join(networkErr, s.bounded(ctx, s.images.SweepAtStart))
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
	err := s.layers.SweepAbandoned(ctx)
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

// removeLeftovers removes the leftovers of some kinds concurrently, each under its own deadline.
func (s *Service) removeLeftovers(ctx context.Context, found []leftover, of func(leftoverKind) bool) {
	log := klog.FromContext(ctx)
	var group errgroup.Group
	group.SetLimit(settleWorkers)
	for _, l := range found {
		if !of(l.kind) {
			continue
		}
		log.Info("Removing leftover without a record", "what", string(l.kind), "where", l.where)
		s.operations.Note("remove leftover", operations.Subject{}, string(l.kind)+" "+l.where)
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, s.opts.TeardownTimeout)
			defer cancel()
			if err := s.removeLeftover(ctx, l); err != nil {
				log.Error(err, "Removing leftover failed, the next start tries again", "what", string(l.kind), "where", l.where)
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
	for _, p := range s.pods.All() {
		_, recovering := unfinished[p.ID()]
		if (p.State().Phase != state.PodNotReady || recovering) && !p.hostNetwork() {
			ids = append(ids, p.ID())
		}
	}
	return ids
}

// removeLeftover removes what leftovers found.
func (s *Service) removeLeftover(ctx context.Context, l leftover) error {
	switch l.kind {
	case leftProcess:
		return s.keeper.Delete(ctx, l.where)
	case leftLayer:
		return s.layers.Remove(ctx, l.where)
	case leftStateDir:
		return s.clearStateDir(ctx, l.where)
	case leftCgroup:
		return errors.Join(s.cgroups.KillAll(ctx, l.where), s.cgroups.RemoveParent(ctx, l.where))
	default: // leftJob, leftDiscarded
		return overlay.RemoveTree(ctx, l.where)
	}
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
