package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/micarun/mica/e2e/cluster"
	"github.com/micarun/mica/e2e/node"
)

// patience bounds the start and the deletion of all pods.
const patience = 5 * time.Minute

// figures are the results of a turn, by the names of rows.
type figures map[string]float64

func (f figures) String() string {
	var parts []string
	for _, r := range rows() {
		parts = append(parts, fmt.Sprintf("%s %.1f %s", r.what, f[r.what], r.unit))
	}
	return strings.Join(parts, "; ")
}

// bench is a turn in progress.
type bench struct {
	*cluster.Cluster
	settings
	figures
	node *cluster.Node
}

// measure measures all figures of a cluster.
func measure(ctx context.Context, c *cluster.Cluster, s settings) (figures, error) {
	b := &bench{Cluster: c, settings: s, figures: figures{}, node: c.Nodes[0]}
	// A first pod pulls the image, and makes all programs allocate what they keep.
	for _, part := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := b.create(ctx, 1); return err },
		func(ctx context.Context) error { _, err := b.remove(ctx, 1); return err },
		b.start, b.rest, b.end,
	} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	return b.figures, nil
}

// start measures the start of all pods.
func (b *bench) start(ctx context.Context) error {
	var took []time.Duration
	spent, used, err := b.window(ctx, func() (err error) {
		begin := time.Now()
		took, err = b.create(ctx, b.pods)
		b.figures[rowRunning] = time.Since(begin).Seconds()
		return err
	})
	if err != nil {
		return fmt.Errorf("start pods: %w", err)
	}
	b.figures[rowPodP50], b.figures[rowPodP99] = quantile(took, 0.5), quantile(took, 0.99)
	b.figures[rowStartCPU] = used.Seconds()
	b.figures[rowSandbox] = spent.operation("run_podsandbox")
	b.figures[rowCreate] = spent.operation("create_container")
	b.figures[rowStart] = spent.operation("start_container")
	b.figures[rowCalls] = b.figures[rowSandbox] + b.figures[rowCreate] + b.figures[rowStart]
	b.figures[rowStartRelist] = spent["kubelet_pleg_relist_duration_seconds_sum"]
	b.figures[rowStartPLEG] = 1000 * spent.mean("kubelet_pleg_relist_duration_seconds", "")
	b.figures[rowStartPLEG99] = 1000 * spent.quantile("kubelet_pleg_relist_duration_seconds", 0.99)
	return nil
}

// rest measures the cost of running pods.
func (b *bench) rest(ctx context.Context) error {
	spent, used, err := b.window(ctx, func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(b.idle):
			return nil
		}
	})
	if err != nil {
		return fmt.Errorf("measure running pods: %w", err)
	}
	b.figures[rowIdleCPU] = 1000 * used.Seconds() / b.idle.Seconds()
	b.figures[rowIdlePLEG] = 1000 * spent.mean("kubelet_pleg_relist_duration_seconds", "")
	b.figures[rowIdlePLEG99] = 1000 * spent.quantile("kubelet_pleg_relist_duration_seconds", 0.99)
	pids, err := b.node.RuntimeProcesses()
	if err != nil {
		return fmt.Errorf("measure running pods: %w", err)
	}
	for _, pid := range pids {
		kib, err := node.ProportionalMemory(pid)
		if err != nil {
			return fmt.Errorf("measure running pods: %w", err)
		}
		b.figures[rowMemory] += kib / 1024
	}
	return nil
}

// end measures the deletion of all pods.
func (b *bench) end(ctx context.Context) error {
	var took []time.Duration
	spent, used, err := b.window(ctx, func() (err error) {
		begin := time.Now()
		took, err = b.remove(ctx, b.pods)
		b.figures[rowGone] = time.Since(begin).Seconds()
		return err
	})
	if err != nil {
		return fmt.Errorf("delete pods: %w", err)
	}
	b.figures[rowGoneP50], b.figures[rowGoneP99] = quantile(took, 0.5), quantile(took, 0.99)
	b.figures[rowGoneCPU] = used.Seconds()
	b.figures[rowStop] = spent.operation("stop_container")
	b.figures[rowStopSandbox] = spent.operation("stop_podsandbox")
	return nil
}

// window returns the kubelet's counts during f, and the processor time that container runtime and
// pods used during f.
func (b *bench) window(ctx context.Context, f func() error) (histograms, time.Duration, error) {
	before, err := b.kubelet(ctx)
	if err != nil {
		return nil, 0, err
	}
	used, err := b.node.CPU()
	if err != nil {
		return nil, 0, err
	}
	if err := f(); err != nil {
		return nil, 0, err
	}
	now, err := b.node.CPU()
	if err != nil {
		return nil, 0, err
	}
	after, err := b.kubelet(ctx)
	return after.since(before), now - used, err
}

// create creates pods. For each it returns the time from its creation until it was ready.
func (b *bench) create(ctx context.Context, count int) ([]time.Duration, error) {
	var items []any
	for n := range count {
		items = append(items, map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": fmt.Sprintf("pod-%d", n)},
			"spec": map[string]any{
				"nodeName": b.node.Name,
				"containers": []any{map[string]any{
					"name": "main", "image": cluster.Busybox, "imagePullPolicy": "IfNotPresent",
					// The shell exits at SIGTERM.
					"command": []string{"sh", "-c", "trap exit TERM; while :; do sleep 3600 & wait; done"},
				}},
			},
		})
	}
	manifest, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		return nil, err
	}
	since := map[string]time.Time{}
	took := map[string]time.Duration{}
	err = b.watch(ctx, func(kind string, pod corev1.Pod) (done bool) {
		if kind == "ADDED" {
			since[pod.Name] = time.Now()
		}
		for _, condition := range pod.Status.Conditions {
			if _, known := took[pod.Name]; !known && condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				took[pod.Name] = time.Since(since[pod.Name])
			}
		}
		return len(took) == count
	}, func(ctx context.Context) error {
		// The namespace's service account may not exist yet.
		return cluster.Await(ctx, "pods to be accepted", func(ctx context.Context) error {
			_, err := b.KubectlInput(ctx, string(manifest), "create", "--validate=false", "--filename=-")
			return err
		})
	})
	return slices.Collect(maps.Values(took)), err
}

// remove deletes all pods. For each it returns the time until it was gone.
func (b *bench) remove(ctx context.Context, count int) ([]time.Duration, error) {
	since := map[string]time.Time{}
	var took []time.Duration
	err := b.watch(ctx, func(kind string, pod corev1.Pod) (done bool) {
		if _, known := since[pod.Name]; !known && pod.DeletionTimestamp != nil {
			since[pod.Name] = time.Now()
		}
		if kind == "DELETED" {
			took = append(took, time.Since(since[pod.Name]))
		}
		return len(took) == count
	}, func(ctx context.Context) error {
		_, err := b.Kubectl(ctx, "delete", "pods", "--all", "--wait=false")
		return err
	})
	return took, err
}

// watch calls act, and calls see for every change of pods since before the call, until see returns
// true.
func (b *bench) watch(ctx context.Context, see func(kind string, pod corev1.Pod) (done bool), act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	seen := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		seen <- b.WatchPods(ctx, "/api/v1/namespaces/default/pods", func() { close(begun) }, see)
	}()
	select {
	case <-begun:
	case err := <-seen:
		return err
	}
	if err := act(ctx); err != nil {
		cancel()
		return errors.Join(err, <-seen)
	}
	return <-seen
}

// quantile returns a quantile of durations, in seconds.
func quantile(of []time.Duration, rank float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[int(rank*float64(len(sorted)-1))].Seconds()
}
