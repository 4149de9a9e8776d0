package main

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimes are the times of each call of a pod's life.
type callTimes struct {
	starts
	stopContainer, removeContainer, stop, remove samples
}

// calls measures each call of a pod's life, as the kubelet sends them: it stops the container
// without a grace period, then the pod, and removes both.
func calls(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var took [2]callTimes
	for round := range s.rounds + 2 {
		for n, p := range peers {
			if err := p.life(ctx, &took[n]); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
		if round == 1 { // warm-up
			took = [2]callTimes{}
		}
	}
	for n, p := range peers {
		p.starts = took[n].starts
	}
	var rows []row
	for _, call := range []struct {
		name string
		of   func(*callTimes) samples
	}{
		{"RunPodSandbox", func(t *callTimes) samples { return t.run }},
		{"CreateContainer", func(t *callTimes) samples { return t.create }},
		{"StartContainer", func(t *callTimes) samples { return t.start }},
		{"StopContainer", func(t *callTimes) samples { return t.stopContainer }},
		{"StopPodSandbox", func(t *callTimes) samples { return t.stop }},
		{"RemoveContainer", func(t *callTimes) samples { return t.removeContainer }},
		{"RemovePodSandbox", func(t *callTimes) samples { return t.remove }},
	} {
		of := [2]samples{call.of(&took[0]), call.of(&took[1])}
		rows = append(rows, pair(call.name+", p50", 0.5, of), pair(call.name+", p99", 0.99, of))
	}
	return rows, nil
}

// life starts and removes one pod.
func (p *peer) life(ctx context.Context, t *callTimes) error {
	pod, container, err := p.startPodTimed(ctx, &t.starts)
	if err != nil {
		return err
	}
	for _, call := range []struct {
		name string
		to   *samples
		do   func() error
	}{
		{"stop container", &t.stopContainer, func() error { return p.runtime.StopContainer(ctx, container, 0) }},
		{"stop pod", &t.stop, func() error { return p.runtime.StopPodSandbox(ctx, pod) }},
		{"remove container", &t.removeContainer, func() error { return p.runtime.RemoveContainer(ctx, container) }},
		{"remove pod", &t.remove, func() error { return p.runtime.RemovePodSandbox(ctx, pod) }},
	} {
		if err := call.to.timed(call.do); err != nil {
			return fmt.Errorf("%s: %w", call.name, err)
		}
	}
	return nil
}

// statistics measures the lists of usage with running pods. The parts of the two lists that come
// from caches are warm.
func statistics(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var running [2][]string
	for n, p := range peers {
		for range s.pods {
			pod, _, err := p.startPod(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			running[n] = append(running[n], pod)
		}
	}
	var pods, containers [2]samples
	for round := range 2 * s.rounds {
		for n, p := range peers {
			for _, list := range []struct {
				to *samples
				do func() (int, error)
			}{
				{&containers[n], func() (int, error) {
					all, err := p.runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{})
					return len(all), err
				}},
				{&pods[n], func() (int, error) {
					all, err := p.runtime.ListPodSandboxStats(ctx, &runtimeapi.PodSandboxStatsFilter{})
					return len(all), err
				}},
			} {
				var found int
				err := list.to.timed(func() (err error) {
					found, err = list.do()
					return err
				})
				if err == nil && found != s.pods {
					err = fmt.Errorf("%d of %d", found, s.pods)
				}
				if err != nil {
					return nil, fmt.Errorf("%s: list usage: %w", p.name, err)
				}
			}
		}
		if round == 1 { // warm-up
			pods, containers = [2]samples{}, [2]samples{}
		}
	}
	for n, p := range peers {
		for _, pod := range running[n] {
			if err := p.removePod(ctx, pod); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return []row{
		pair(fmt.Sprintf("ListContainerStats with %d pods, p50", s.pods), 0.5, containers),
		pair(fmt.Sprintf("ListPodSandboxStats with %d pods, p50", s.pods), 0.5, pods),
	}, nil
}
