package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// pulled is an image whose pull is measured.
type pulled struct {
	what, image string
	present     string // pulled before, "" for none
	resources   bool   // measure processor time and memory too
}

// pulls pulls images repeatedly, and removes them in between.
func pulls(ctx context.Context, s settings, peers []*peer) ([]row, error) {
	var rows []row
	for _, image := range []pulled{
		{what: "pull of the python image (323 MB, 6 layers, gzip)", image: python, resources: true},
		{what: "the same image with zstd", image: "registry.test/mica/python:zstd", resources: true},
		{what: "pull of 40 small layers", image: "registry.test/mica/layers40:latest"},
		{what: "pull of the python image on another base, its layers present", image: "registry.test/mica/python:rebased", present: python, resources: true},
		{what: "pull of one small layer on those of the python image", image: "registry.test/mica/python:app", present: python},
	} {
		more, err := pullsOf(ctx, s, peers, image)
		if err != nil {
			return nil, fmt.Errorf("pull of %s: %w", image.image, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func pullsOf(ctx context.Context, s settings, peers []*peer, image pulled) ([]row, error) {
	if image.present != "" {
		for _, p := range peers {
			if _, err := p.pull(ctx, image.present); err != nil {
				return nil, err
			}
		}
	}
	var took, busy [2]samples
	var memory [2]float64
	for range s.pulls {
		for n, p := range peers {
			before, err := p.processorTime()
			if err != nil {
				return nil, err
			}
			elapsed, err := p.pull(ctx, image.image)
			if err != nil {
				return nil, err
			}
			after, err := p.processorTime()
			if err != nil {
				return nil, err
			}
			took[n], busy[n] = append(took[n], elapsed), append(busy[n], after-before)
			if err := p.removeImage(ctx, image.image); err != nil {
				return nil, err
			}
		}
	}
	rows := []row{pair(image.what+", p50", 0.5, took)}
	if image.resources {
		for n, p := range peers {
			var err error
			if memory[n], err = p.pullMemory(ctx, image.image); err != nil {
				return nil, err
			}
		}
		rows = append(rows, pair("its processor time, p50", 0.5, busy), row{what: "its peak of memory (PSS)", unit: "MiB", mica: memory[0], other: memory[1]})
	}
	if image.present != "" {
		for _, p := range peers {
			if err := p.removeImage(ctx, image.present); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

func (p *peer) pull(ctx context.Context, image string) (time.Duration, error) {
	begin := time.Now()
	if _, err := p.images.PullImage(ctx, &runtimeapi.ImageSpec{Image: image}, nil, nil); err != nil {
		return 0, fmt.Errorf("%s: pull: %w", p.name, err)
	}
	return time.Since(begin), nil
}

// removeImage also flushes all writes, so that one peer's writes do not delay the other.
func (p *peer) removeImage(ctx context.Context, image string) error {
	if err := p.images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: image}); err != nil {
		return fmt.Errorf("%s: remove image: %w", p.name, err)
	}
	return command(ctx, "sync")
}

// pullMemory pulls an image and returns the peak of the memory of the runtime's processes, with
// their children, in MiB. The measurement slows down the pull.
func (p *peer) pullMemory(ctx context.Context, image string) (float64, error) {
	ended := make(chan error, 1)
	go func() {
		_, err := p.pull(ctx, image)
		ended <- err
	}()
	var peak float64
	for {
		select {
		case err := <-ended:
			if err != nil {
				return 0, err
			}
			return peak / 1024, p.removeImage(ctx, image)
		case <-time.After(10 * time.Millisecond):
		}
		pids, err := p.pids()
		if err != nil {
			return 0, err
		}
		var sum float64
		for _, pid := range pids {
			sum += treeMemory(pid)
		}
		peak = max(peak, sum)
	}
}

// treeMemory returns the memory of a process and its children in KiB. A process that has ended has
// none.
func treeMemory(pid int) float64 {
	sum, _ := node.ProportionalMemory(pid)
	for _, child := range children(pid) {
		sum += treeMemory(child)
	}
	return sum
}

func children(pid int) []int {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	var all []int
	for _, task := range tasks {
		list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, field := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// processorTime returns the processor time that the runtime's processes and their ended children
// have used.
func (p *peer) processorTime() (time.Duration, error) {
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The fields after the name: utime, stime, cutime and cstime are the 12th to the 15th.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:15] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
			}
			ticks += n
		}
	}
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(ticks) * tick, nil
}
