package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// workerCount is the number of pods that are started at the same time.
const workerCount = 8

// workers starts pods concurrently. Processor time is measured while they run, since a shim's ends
// with its pod.
func workers(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	rate := row{what: fmt.Sprintf("pod starts per second, %d at a time", workerCount), unit: "/s", more: true}
	cost := row{what: "their processor time per pod", unit: "ms"}
	for n, p := range peers {
		var running []string
		begin := time.Now()
		busy, err := p.busyDuring(func() (err error) {
			running, err = p.startPods(ctx, s.pods)
			return err
		})
		if err != nil {
			return nil, err
		}
		*rate.of(n) = float64(s.pods) / time.Since(begin).Seconds()
		*cost.of(n) = milliseconds(busy) / float64(s.pods)
		if err := p.removePods(ctx, running); err != nil {
			return nil, err
		}
	}
	return []row{rate, cost}, nil
}

// busyDuring returns the processor time that the runtime uses while f runs. Processes that exist
// before must exist after it.
func (p *peer) busyDuring(f func() error) (time.Duration, error) {
	before, err := p.processorTime()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, err)
	}
	after, err := p.processorTime()
	return after - before, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// startPods starts pods, workerCount at a time.
func (p *peer) startPods(ctx context.Context, count int) ([]string, error) {
	running := make([]string, count)
	var starts errgroup.Group
	starts.SetLimit(workerCount)
	for i := range running {
		starts.Go(func() (err error) {
			running[i], _, err = p.startPod(ctx)
			return err
		})
	}
	return running, starts.Wait()
}

func (p *peer) removePods(ctx context.Context, pods []string) error {
	for _, pod := range pods {
		if err := p.removePod(ctx, pod); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// logSize is the number of bytes that the part logs prints, in lines of 100 bytes.
const logSize = 64 << 20

// logEnd is the last line of the log.
const logEnd = "end of the log"

// logs measures how fast a container's output gets into its log. The container goes on running,
// since the processor time of ended ones would count as the runtime's.
func logs(ctx context.Context, _ settings, peers []*peer) ([]row, error) {
	rate := row{what: "log of a container that prints 64 MiB", unit: "MB/s", more: true}
	cost := row{what: "its processor time per MB", unit: "ms"}
	line := strings.Repeat("0123456789", 10)[:99]
	script := fmt.Sprintf("yes %s | head -c %d; echo; echo %s; exec sleep 100000", line, logSize, logEnd)
	for n, p := range peers {
		var pod string
		begin := time.Now()
		busy, err := p.busyDuring(func() (err error) {
			var log string
			if pod, log, err = p.start(ctx, podArgs{command: []string{"sh", "-c", script}}); err != nil {
				return err
			}
			return awaitEnd(ctx, log)
		})
		if err != nil {
			return nil, err
		}
		*rate.of(n) = logSize / 1e6 / time.Since(begin).Seconds()
		*cost.of(n) = milliseconds(busy) / (logSize / 1e6)
		if err := p.removePods(ctx, []string{pod}); err != nil {
			return nil, err
		}
	}
	return []row{rate, cost}, nil
}

// awaitEnd waits until the log has its last line.
func awaitEnd(ctx context.Context, log string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		ended, err := endsWith(log, logEnd+"\n")
		if err != nil || ended {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of %s: %w", log, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func endsWith(file, text string) (bool, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() < int64(len(text)) {
		return false, err
	}
	tail := make([]byte, len(text))
	_, err = f.ReadAt(tail, info.Size()-int64(len(text)))
	return string(tail) == text, err
}

// hostNetwork starts and removes pods in the node's network.
func hostNetwork(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var took [2]samples
	for round := range s.rounds + 2 {
		for n, p := range peers {
			var t samples
			var pod string
			err := t.timed(func() (err error) {
				pod, _, err = p.start(ctx, podArgs{hostNetwork: true})
				return err
			})
			if err == nil {
				err = p.removePod(ctx, pod)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			if round >= 2 { // warm-up
				took[n] = append(took[n], t...)
			}
		}
	}
	return []row{
		pair("pod start in the node's network, p50", 0.5, took),
		pair("pod start in the node's network, p99", 0.99, took),
	}, nil
}

// idleTime is how long idle polls each peer.
const idleTime = 10 * time.Second

// idle measures the processor time of a runtime with running pods under a kubelet's polling: lists
// every second; usage, status and the image file system every ten seconds.
func idle(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	cost := row{what: fmt.Sprintf("processor time per second with %d pods, polled as by a kubelet", s.pods), unit: "ms"}
	for n, p := range peers {
		running, err := p.startPods(ctx, s.pods)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		busy, err := p.busyDuring(func() error { return p.poll(ctx) })
		if err != nil {
			return nil, err
		}
		*cost.of(n) = milliseconds(busy) / idleTime.Seconds()
		if err := p.removePods(ctx, running); err != nil {
			return nil, err
		}
	}
	return []row{cost}, nil
}

// poll calls the peer as an idle kubelet does, for idleTime.
func (p *peer) poll(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for second := range int(idleTime / time.Second) {
		if err := p.pollOnce(ctx, second == 0); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func (p *peer) pollOnce(ctx context.Context, all bool) error {
	_, err := p.runtime.ListPodSandbox(ctx, nil)
	if err == nil {
		_, err = p.runtime.ListContainers(ctx, nil)
	}
	if err == nil && all {
		_, err = p.runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{})
	}
	if err == nil && all {
		_, err = p.runtime.Status(ctx, false)
	}
	if err == nil && all {
		_, err = p.images.ImageFsInfo(ctx)
	}
	return err
}
