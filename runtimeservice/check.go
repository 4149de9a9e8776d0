package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
	"github.com/micarun/mica/runtimeservice/keeper"
	"github.com/micarun/mica/runtimeservice/state"
)

// releaseGrace is how long the resources of an exited container may exist before Check reports
// them.
const releaseGrace = 10 * time.Second

// checkPatience is how long a check waits for the recoveries of a daemon that has just started.
// Check reports recoveries that take longer, such as a tear-down with a plugin that hangs.
const checkPatience = 10 * time.Second

// Check compares the node with the records and returns every difference. It changes nothing. It may
// run concurrently with requests, but can then report a pod or container that is being made or
// removed. It reports pods and containers whose recovery has not ended; see
// [Service.AwaitRecovery]. It returns an error if the keeper does not answer, and what it found
// together with the error if another source cannot be read.
func (s *Service) Check(ctx context.Context) ([]overlay.Problem, error) {
	states, err := s.keeper.List(ctx)
	if err != nil {
		return nil, err
	}
	alive := make(map[string]keeper.State, len(states))
	for _, st := range states {
		alive[st.ID] = st
	}
	found, err := s.leftovers(alive)
	problems := problemsOf(found)
	for id, stage := range s.recoveries.unfinished() {
		problems = append(problems, overlay.Problem{Path: id, What: "not recovered yet: " + stage})
	}
	for _, u := range s.unusable.all() {
		problems = append(problems, overlay.Problem{Path: u.dir, What: "record cannot be used: " + u.err.Error()})
	}
	for _, c := range s.containers.All() {
		if st := alive[c.ID()]; c.Phase() == state.Running && !st.Running {
			problems = append(problems, overlay.Problem{Path: c.Dir(), What: "container is recorded as running, but the keeper does not report it as running"})
		}
	}
	problems = append(problems, s.unsettled(alive)...)
	problems = append(problems, s.lacking()...)
	problems = append(problems, s.changedNetworks(ctx)...)
	left, leftErr := s.network.Leftovers(s.networked())
	live, liveErr := s.network.LiveLeftovers(ctx, s.networked())
	return append(problems, networkProblems(append(left, live...))...), errors.Join(err, leftErr, liveErr)
}

// lacking finds ready pods that lack something that the next start restores.
func (s *Service) lacking() []overlay.Problem {
	var problems []overlay.Problem
	for _, p := range s.pods.All() {
		if p.State().Phase != state.PodReady {
			continue
		}
		if what := s.podLacks(p); what != "" {
			problems = append(problems, overlay.Problem{Path: p.Dir(), What: "pod is ready but lacks its " + what})
		}
	}
	return problems
}

// changedNetworks finds ready pods whose network is no longer as the daemon made it. Pods of executed
// plugins are not checked: the CHECK of some fails for healthy pods, such as that of portmap 1.1.1
// for host ports of one address family.
func (s *Service) changedNetworks(ctx context.Context) []overlay.Problem {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	var problems []overlay.Problem
	for _, p := range s.pods.All() {
		ready := func() bool { return p.State().Phase == state.PodReady }
		if !ready() || p.hostNetwork() || !s.network.InProcess(p.ID()) {
			continue
		}
		// A stop during the check takes the network away.
		if err := s.network.Check(ctx, s.networkPod(p)); err != nil && ready() {
			problems = append(problems, overlay.Problem{Path: p.Dir(), What: "network has changed: " + err.Error()})
		}
	}
	return problems
}

// AwaitRecovery waits until the recoveries and the sweep of the start have ended, at most 10
// seconds or until ctx ends. It is safe for concurrent use.
func (s *Service) AwaitRecovery(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	select {
	case <-s.recoveries.over:
	case <-ctx.Done():
	}
}

// CheckArgs are the arguments of CheckRecords.
type CheckArgs struct {
	Options Options
	// Layers must be the opened store of the daemon, whose lock keeps a daemon from starting
	// meanwhile.
	Layers  *overlay.Store
	Cgroups *cgroup.Manager
	Network network.Options
}

// CheckRecords is Check for a node whose daemon does not run. It compares the records with the
// disk, the state directory and the cgroups, and changes nothing. It also reports what a killed
// daemon left half done, which the next start repairs or removes. It does not ask the keeper. It
// returns an error if the records cannot be listed, and what it found together with the error if
// another source cannot be read.
func CheckRecords(ctx context.Context, a CheckArgs) ([]overlay.Problem, error) {
	v := newInventory(a.Options.paths(), nil)
	v.layers, v.cgroups = a.Layers, a.Cgroups
	var err error
	if v.bootID, err = readBootID(); err != nil {
		return nil, err
	}
	var problems []overlay.Problem
	bad := func(_ context.Context, u unusable) error {
		problems = append(problems, overlay.Problem{Path: u.dir, What: "record cannot be used: " + u.err.Error()})
		return nil
	}
	for _, load := range []func(context.Context, unusableFunc) error{v.loadPods, v.loadContainers} {
		if err := load(ctx, bad); err != nil && !errors.Is(err, fs.ErrNotExist) { // none on a new node
			return nil, fmt.Errorf("check records: %w", err)
		}
	}
	found, err := v.leftovers(nil)
	problems = append(problems, problemsOf(found)...)
	problems = append(problems, v.incomplete()...)
	// The keeper is not asked, so the processes that it supervises count as alive.
	alive := map[string]keeper.State{}
	for _, p := range v.pods.All() {
		alive[p.ID()] = keeper.State{Running: true}
	}
	problems = append(problems, v.unsettled(alive)...)
	left, leftErr := a.Network.Leftovers(v.networked())
	return append(problems, networkProblems(left)...), errors.Join(err, leftErr)
}

// incomplete finds half-made pods and containers, and containers that lack their writable layer.
func (v *inventory) incomplete() []overlay.Problem {
	var problems []overlay.Problem
	for _, p := range v.pods.All() {
		if p.State().Phase == state.PodCreating {
			problems = append(problems, overlay.Problem{Path: p.Dir(), What: "pod is half made"})
		}
	}
	writable := map[string]bool{}
	for _, rw := range v.layers.RWs() {
		writable[rw.ID] = true
	}
	for _, c := range v.containers.All() {
		if c.Phase() == state.Creating {
			problems = append(problems, overlay.Problem{Path: c.Dir(), What: "container is half made"})
		} else if !writable[c.ID()] {
			problems = append(problems, overlay.Problem{Path: c.Dir(), What: "container without its writable layer"})
		}
	}
	return problems
}

// unsettled finds stopped pods and exited containers that still have resources, and ready pods that
// lack some. It ignores ready pods of an earlier boot, which the next start stops.
func (v *inventory) unsettled(alive map[string]keeper.State) []overlay.Problem {
	var problems []overlay.Problem
	for _, c := range v.containers.All() {
		st := c.State()
		if st.Phase() == state.Exited && time.Since(st.Finished) > releaseGrace && exists(v.paths.Bundle(c.ID())) {
			problems = append(problems, overlay.Problem{Path: v.paths.Bundle(c.ID()), What: "bundle of an exited container"})
		}
	}
	for _, p := range v.pods.All() {
		st := p.State()
		switch {
		case st.Phase == state.PodReady && st.BootID == v.bootID && !v.podStands(p, alive):
			problems = append(problems, overlay.Problem{Path: p.Dir(), What: "pod is recorded as ready, but its namespaces or its shared memory are missing"})
		case st.Phase == state.PodNotReady && exists(v.paths.PodState(p.ID())):
			problems = append(problems, overlay.Problem{Path: v.paths.PodState(p.ID()), What: "state directory of a stopped pod"})
		}
	}
	return problems
}

// networked returns the pods that may have a network.
func (v *inventory) networked() []string {
	var ids []string
	for _, p := range v.pods.All() {
		if p.State().Phase != state.PodNotReady && !p.hostNetwork() {
			ids = append(ids, p.ID())
		}
	}
	return ids
}

func problemsOf(found []leftover) []overlay.Problem {
	var problems []overlay.Problem
	for _, l := range found {
		problems = append(problems, overlay.Problem{Path: l.where, What: string(l.kind) + " without a record"})
	}
	return problems
}

func networkProblems(left []network.Leftover) []overlay.Problem {
	var problems []overlay.Problem
	for _, l := range left {
		problems = append(problems, overlay.Problem{Path: l.Path, What: l.What})
	}
	return problems
}
