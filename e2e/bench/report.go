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

// printConditions prints the versions and the machine.
func printConditions(ctx context.Context, s settings) {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Printf("%d cores, Linux %s; %s; ", runtime.NumCPU(), strings.TrimSpace(string(kernel)), version(ctx, cmp.Or(s.runtime, "runc")))
	if s.against == "" {
		fmt.Printf("%s; CNI plugins of Debian (bridge, host-local, portmap);\n", version(ctx, "containerd"))
	} else {
		fmt.Println("embedded network;")
	}
	fmt.Printf("stores on journaled ext4 in memory; %d pods, %d commands, %d pulls each, in turns;", s.rounds, 2*s.rounds, s.pulls)
	for _, tool := range []string{"igzip", "unpigz"} {
		state := "not installed"
		if path, err := exec.LookPath(tool); err == nil {
			state = path
		}
		fmt.Printf(" %s: %s;", tool, state)
	}
	fmt.Print("\n\n")
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
		ratio := "–"
		if r.mica > 0 {
			ratio = fmt.Sprintf("%.1f×", r.other/r.mica)
		}
		fmt.Printf("| %s | %.1f %s | %.1f %s | %s |\n", r.what, r.mica, r.unit, r.other, r.unit, ratio)
	}
}
