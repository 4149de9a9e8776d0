package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// row is one line of the table: a value for each peer, and the unit.
type row struct {
	what        string
	unit        string
	mica, other float64
	more        bool // larger values are better
}

// of returns the value of one peer.
func (r *row) of(peer int) *float64 { return []*float64{&r.mica, &r.other}[peer] }

// ratio says how many times better Mica is.
func (r row) ratio() string {
	better, worse := r.mica, r.other
	if r.more {
		better, worse = worse, better
	}
	if better <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f×", worse/better)
}

// measure measures every row, alternating between the peers.
func measure(ctx context.Context, s settings, mica, other *peer) ([]row, error) {
	peers := []*peer{mica, other}
	for _, p := range peers {
		if _, err := p.images.PullImage(ctx, &runtimeapi.ImageSpec{Image: workload}, nil, nil); err != nil {
			return nil, fmt.Errorf("%s: pull: %w", p.name, err)
		}
	}
	var rows []row
	all := map[string]func(context.Context, settings, []*peer) ([]row, error){
		"pulls": pulls, "pods": pods, "execs": execs, "crowd": crowd, "calls": calls, "stats": statistics,
		"host network": hostNetwork, "workers": workers, "logs": logs, "idle": idle,
	}
	for _, name := range s.parts {
		part := all[name]
		if part == nil {
			return nil, fmt.Errorf("no part %q", name)
		}
		more, err := part(ctx, s, peers)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// samples are the measurements of one quantity for one peer.
type samples []time.Duration

func (s samples) at(quantile float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	rank := int(quantile * float64(len(sorted)-1))
	return float64(sorted[rank].Microseconds()) / 1000
}

func (s samples) mean() float64 {
	var sum time.Duration
	for _, d := range s {
		sum += d
	}
	return milliseconds(sum) / float64(len(s))
}

// timed appends the duration of f.
func (s *samples) timed(f func() error) error {
	begin := time.Now()
	err := f()
	*s = append(*s, time.Since(begin))
	return err
}

func pair(what string, quantile float64, of [2]samples) row {
	return row{what: what, unit: "ms", mica: of[0].at(quantile), other: of[1].at(quantile)}
}

// pods starts and removes pods, one at a time.
func pods(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var started, removed [2]samples
	for round := range s.rounds + 2 {
		for n, p := range peers {
			var pod string
			var starting, removing samples
			err := starting.timed(func() (err error) {
				pod, _, err = p.startPod(ctx)
				return err
			})
			if err == nil {
				err = removing.timed(func() error { return p.removePod(ctx, pod) })
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			if round >= 2 { // warm-up
				started[n], removed[n] = append(started[n], starting...), append(removed[n], removing...)
			}
		}
	}
	return []row{
		pair("pod start with CNI (run, create, start), p50", 0.5, started),
		pair("pod start with CNI, p99", 0.99, started),
		pair("pod stop and remove, p50", 0.5, removed),
		pair("pod stop and remove, p99", 0.99, removed),
	}, nil
}

// execs runs commands in one container of each peer.
func execs(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var took, busy [2]samples
	var running, containers [2]string
	for n, p := range peers {
		var err error
		if running[n], containers[n], err = p.startPod(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for n, p := range peers { // warm-up
		if _, _, err := p.runtime.ExecSync(ctx, containers[n], []string{"true"}, time.Minute); err != nil {
			return nil, fmt.Errorf("%s: exec: %w", p.name, err)
		}
	}
	const batch = 10 // processor time is counted in steps of 10 ms
	for range 2 * s.rounds / batch {
		for n, p := range peers {
			used, err := p.busyDuring(func() error {
				for range batch {
					err := took[n].timed(func() error {
						_, _, err := p.runtime.ExecSync(ctx, containers[n], []string{"true"}, 10*time.Second)
						return err
					})
					if err != nil {
						return fmt.Errorf("exec: %w", err)
					}
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			busy[n] = append(busy[n], used/batch)
		}
	}
	for n, p := range peers {
		if err := p.removePod(ctx, running[n]); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return []row{
		pair("ExecSync, p50", 0.5, took),
		pair("ExecSync, p99", 0.99, took),
		{what: "its processor time, mean", unit: "ms", mica: busy[0].mean(), other: busy[1].mean()},
	}, nil
}

// fewPods is the smallest number of pods whose memory is measured.
const fewPods = 5

// crowdSizes are the numbers of pods whose memory is measured.
func (s settings) crowdSizes() []int {
	return slices.Compact([]int{fewPods, max(fewPods, s.pods/2), s.pods})
}

// crowd measures the memory per running pod, as the slope between few pods and many, and the
// restart of a killed daemon with the many pods.
func crowd(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	memory := row{what: fmt.Sprintf("memory per running pod (PSS, %d to %d pods)", fewPods, s.pods), unit: "KiB"}
	base := row{what: fmt.Sprintf("memory of the runtime with %d pods (PSS)", s.pods), unit: "KiB"}
	var restarted [2]samples
	for n, p := range peers {
		at, running, err := p.memoryOf(ctx, s.crowdSizes())
		if err != nil {
			return nil, err
		}
		for range 7 {
			took, err := p.restart(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: restart: %w", p.name, err)
			}
			restarted[n] = append(restarted[n], took)
		}
		if err := p.removePods(ctx, running); err != nil {
			return nil, err
		}
		p.memory = at
		*memory.of(n) = (at[len(at)-1] - at[0]) / float64(s.pods-fewPods)
		*base.of(n) = at[len(at)-1]
	}
	return []row{memory, base, pair(fmt.Sprintf("ready after kill -9 with %d pods, p50", s.pods), 0.5, restarted)}, nil
}

// memoryOf starts pods and returns the memory of the runtime at several numbers of them, in KiB.
func (p *peer) memoryOf(ctx context.Context, sizes []int) (at []float64, running []string, err error) {
	for _, count := range sizes {
		for len(running) < count {
			pod, _, err := p.startPod(ctx)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", p.name, err)
			}
			running = append(running, pod)
		}
		kib, err := p.settledMemory(ctx)
		if err != nil {
			return nil, nil, err
		}
		at = append(at, kib)
	}
	return at, running, nil
}

// settledMemory returns the memory of the runtime's processes, in KiB, once garbage could be
// collected: the minimum of ten measurements, half a second apart.
func (p *peer) settledMemory(ctx context.Context) (float64, error) {
	var least float64
	for look := range 10 {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		pids, err := p.pids()
		if err != nil {
			return 0, err
		}
		var sum float64
		for _, pid := range pids {
			kib, err := node.ProportionalMemory(pid)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", p.name, err)
			}
			sum += kib
		}
		if look == 0 || sum < least {
			least = sum
		}
	}
	return least, nil
}
