package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// conditions describes the versions and the machine.
func conditions(ctx context.Context, s settings) string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	lines := []string{
		fmt.Sprintf("%d cores, Linux %s, load average %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), first),
		version(ctx, cmp.Or(s.runtime, "runc")),
	}
	if s.against == "" {
		lines = append(lines, version(ctx, "containerd"), "CNI plugins of Debian (bridge, host-local, portmap)")
	} else {
		lines = append(lines, "embedded network")
	}
	lines = append(lines, fmt.Sprintf("stores on journaled ext4 in memory; %d pods, %d commands, %d pulls each, in turns", s.rounds, 2*s.rounds, s.pulls))
	for _, tool := range []string{"igzip", "unpigz"} {
		state := "not installed"
		if path, err := exec.LookPath(tool); err == nil {
			state = path
		}
		lines = append(lines, tool+": "+state)
	}
	return strings.Join(lines, "; ")
}

func version(ctx context.Context, program string) string {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return program + ": " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func printTable(other string, rows []row) {
	fmt.Printf("| | Mica | %s | ratio |\n", other)
	fmt.Println("|---|---:|---:|---:|")
	for _, r := range rows {
		fmt.Printf("| %s | %.1f %s | %.1f %s | %s |\n", r.what, r.mica, r.unit, r.other, r.unit, r.ratio())
	}
}

// resultOf collects what is written to files.
func resultOf(s settings, conditions string, peers []*peer, rows []row) result {
	r := result{Conditions: conditions, Peers: [2]string{peers[0].name, peers[1].name}}
	for _, row := range rows {
		r.Rows = append(r.Rows, resultRow{row.what, row.unit, [2]float64{row.mica, row.other}})
	}
	for _, call := range []struct {
		name string
		of   func(*peer) samples
	}{
		{"RunPodSandbox", func(p *peer) samples { return p.starts.run }},
		{"CreateContainer", func(p *peer) samples { return p.starts.create }},
		{"StartContainer", func(p *peer) samples { return p.starts.start }},
	} {
		of := [2]samples{call.of(peers[0]), call.of(peers[1])}
		if len(of[0]) > 0 {
			p50 := pair(call.name, 0.5, of)
			r.Phases = append(r.Phases, resultRow{call.name, "ms", [2]float64{p50.mica, p50.other}})
		}
	}
	for i, count := range s.crowdSizes() {
		if len(peers[0].memory) > i {
			r.Memory = append(r.Memory, memoryPoint{count, [2]float64{peers[0].memory[i] / 1024, peers[1].memory[i] / 1024}})
		}
	}
	return r
}
