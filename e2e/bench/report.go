package main

import (
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
	fmt.Printf("%d cores, Linux %s; %s; %s; CNI plugins of Debian (bridge, host-local, portmap);\n",
		runtime.NumCPU(), strings.TrimSpace(string(kernel)), version(ctx, "containerd"), version(ctx, "runc"))
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

func printTable(rows []row) {
	fmt.Println("| | Mica | containerd | ratio |")
	fmt.Println("|---|---:|---:|---:|")
	for _, r := range rows {
		ratio := "–"
		if r.mica > 0 {
			ratio = fmt.Sprintf("%.1f×", r.containerd/r.mica)
		}
		fmt.Printf("| %s | %.1f %s | %.1f %s | %s |\n", r.what, r.mica, r.unit, r.containerd, r.unit, ratio)
	}
}
