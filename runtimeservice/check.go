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
)

// releaseGrace is how long an ended container may take to give back what it
// held before Check calls it a problem.
const releaseGrace = 10 * time.Second

// checkPatience is how long a check waits for the recoveries of a daemon that has just
// started. Those that take longer, such as a tear-down with a plugin that hangs, are
// problems.
const checkPatience = 10 * time.Second

// Check compares what is on the node with the records and answers with every
// difference. It changes nothing and may run beside requests, but a pod or
// container that is just being made or removed can then look like a problem. One
// that the start has not recovered yet is a problem; see [Service.AwaitRecovery].
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
	for _, c := range s.containers.all() {
		if st := alive[c.ID]; c.phase() == Running && !st.Running {
			problems = append(problems, overlay.Problem{Path: c.dir, What: "container is recorded as running, and the keeper does not have it so"})
		}
	}
	problems = append(problems, s.unsettled(alive)...)
	problems = append(problems, s.lacking()...)
	left, leftErr := s.network.Leftovers(s.networked())
	live, liveErr := s.network.LiveLeftovers(ctx, s.networked())
	return append(problems, networkProblems(append(left, live...))...), errors.Join(err, leftErr, liveErr)
}

// lacking finds ready pods that lack something that the next start makes again.
func (s *Service) lacking() []overlay.Problem {
	var problems []overlay.Problem
	for _, p := range s.pods.all() {
		if p.snapshot().Phase != PodReady {
			continue
		}
		if what := s.podLacks(p); what != "" {
			problems = append(problems, overlay.Problem{Path: p.dir, What: "pod is ready and lacks its " + what})
		}
	}
	return problems
}

// AwaitRecovery waits for the start to be over before a check, but no longer than
// checkPatience.
func (s *Service) AwaitRecovery(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	select {
	case <-s.recoveries.over:
	case <-ctx.Done():
	}
}

// CheckArgs are what the check of a node without a daemon looks at.
type CheckArgs struct {
	Options Options
	// Layers must be the daemon's own store, so that no daemon starts meanwhile.
	Layers  *overlay.Store
	Cgroups *cgroup.Manager
	Network network.Options
}

// CheckRecords is Check for a node whose daemon does not run: it looks at the
// records, and at what the disk, the state directory and the cgroups have
// besides. It changes nothing. What a killed daemon left half done is a problem
// too, which the next start settles; what only the keeper knows is not looked
// at.
func CheckRecords(ctx context.Context, a CheckArgs) ([]overlay.Problem, error) {
	s := &Service{
		opts: a.Options.withDefaults(), layers: a.Layers, cgroups: a.Cgroups,
		pods: newTable[*Pod](podKind), containers: newTable[*Container](containerKind),
	}
	var err error
	if s.bootID, err = readBootID(); err != nil {
		return nil, err
	}
	var problems []overlay.Problem
	bad := func(_ context.Context, u unusable) error {
		problems = append(problems, overlay.Problem{Path: u.dir, What: "record cannot be used: " + u.err.Error()})
		return nil
	}
	for _, load := range []func(context.Context, unusableFunc) error{s.loadPods, s.loadContainers} {
		if err := load(ctx, bad); err != nil && !errors.Is(err, fs.ErrNotExist) { // none on a new node
			return nil, fmt.Errorf("check records: %w", err)
		}
	}
	found, err := s.leftovers(nil)
	problems = append(problems, problemsOf(found)...)
	problems = append(problems, s.incomplete()...)
	// The keeper is not asked: what it looks after counts as alive.
	alive := map[string]keeper.State{}
	for _, p := range s.pods.all() {
		alive[p.ID] = keeper.State{Running: true}
	}
	problems = append(problems, s.unsettled(alive)...)
	left, leftErr := a.Network.Leftovers(s.networked())
	return append(problems, networkProblems(left)...), errors.Join(err, leftErr)
}

// incomplete finds what was half made, and containers that lack their files.
func (s *Service) incomplete() []overlay.Problem {
	var problems []overlay.Problem
	for _, p := range s.pods.all() {
		if p.snapshot().Phase == PodCreating {
			problems = append(problems, overlay.Problem{Path: p.dir, What: "pod is half made"})
		}
	}
	writable := map[string]bool{}
	for _, rw := range s.layers.RWs() {
		writable[rw.ID] = true
	}
	for _, c := range s.containers.all() {
		if c.phase() == Creating {
			problems = append(problems, overlay.Problem{Path: c.dir, What: "container is half made"})
		} else if !writable[c.ID] {
			problems = append(problems, overlay.Problem{Path: c.dir, What: "container without its writable layer"})
		}
	}
	return problems
}

// unsettled finds pods and containers of this boot whose record says what is
// not so. Those of an earlier boot are settled by the daemon's next start.
func (s *Service) unsettled(alive map[string]keeper.State) []overlay.Problem {
	var problems []overlay.Problem
	for _, c := range s.containers.all() {
		st := c.snapshot()
		if st.phase() == Exited && time.Since(st.Finished) > releaseGrace && exists(s.bundle(c.ID)) {
			problems = append(problems, overlay.Problem{Path: s.bundle(c.ID), What: "bundle of an exited container"})
		}
	}
	for _, p := range s.pods.all() {
		st := p.snapshot()
		switch {
		case st.Phase == PodReady && st.BootID == s.bootID && !s.podStands(p, alive):
			problems = append(problems, overlay.Problem{Path: p.dir, What: "pod is recorded as ready, and its namespaces or its shared memory are not there"})
		case st.Phase == PodNotReady && exists(s.podStateDir(p.ID)):
			problems = append(problems, overlay.Problem{Path: s.podStateDir(p.ID), What: "state directory of a stopped pod"})
		}
	}
	return problems
}

// networked returns the pods that may have a network.
func (s *Service) networked() []string {
	var ids []string
	for _, p := range s.pods.all() {
		if p.snapshot().Phase != PodNotReady && !p.hostNetwork() {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

func problemsOf(found []leftover) []overlay.Problem {
	var problems []overlay.Problem
	for _, l := range found {
		problems = append(problems, overlay.Problem{Path: l.where, What: l.what + " without a record"})
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
