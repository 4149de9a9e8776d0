package main

import (
	"fmt"
	"slices"
)

// Names of the rows.
const (
	rowRunning     = "time until all pods are ready"
	rowPodP50      = "time from a pod's creation until it is ready, p50"
	rowPodP99      = "time from a pod's creation until it is ready, p99"
	rowCalls       = "the three calls below, as the kubelet measures them, mean"
	rowSandbox     = "RunPodSandbox, mean"
	rowCreate      = "CreateContainer, mean"
	rowStart       = "StartContainer, mean"
	rowStartPLEG   = "PLEG relist while pods start, mean"
	rowStartPLEG99 = "PLEG relist while pods start, p99"
	rowStartRelist = "PLEG relists while pods start, in all"
	rowStartCPU    = "processor time of runtime and pods for the start"
	rowIdlePLEG    = "PLEG relist while pods run, mean"
	rowIdlePLEG99  = "PLEG relist while pods run, p99"
	rowIdleCPU     = "processor time of runtime and pods while they run"
	rowMemory      = "memory of the runtime's processes (PSS)"
	rowGone        = "time until all pods are deleted"
	rowGoneP50     = "time from a pod's deletion until it is gone, p50"
	rowGoneP99     = "time from a pod's deletion until it is gone, p99"
	rowStop        = "StopContainer, mean"
	rowStopSandbox = "StopPodSandbox, mean"
	rowGoneCPU     = "processor time of runtime and pods for the deletion"
)

// row is a line of the table.
type row struct{ what, unit string }

func rows() []row {
	return []row{
		{rowRunning, "s"},
		{rowPodP50, "s"},
		{rowPodP99, "s"},
		{rowCalls, "ms"},
		{rowSandbox, "ms"},
		{rowCreate, "ms"},
		{rowStart, "ms"},
		{rowStartPLEG, "ms"},
		{rowStartPLEG99, "ms"},
		{rowStartRelist, "s"},
		{rowStartCPU, "s"},
		{rowIdlePLEG, "ms"},
		{rowIdlePLEG99, "ms"},
		{rowIdleCPU, "ms/s"},
		{rowMemory, "MiB"},
		{rowGone, "s"},
		{rowGoneP50, "s"},
		{rowGoneP99, "s"},
		{rowStop, "ms"},
		{rowStopSandbox, "ms"},
		{rowGoneCPU, "s"},
	}
}

// printTable prints the medians of the rounds.
func printTable(mica, containerd []figures) {
	fmt.Println("| | Mica | containerd | ratio |")
	fmt.Println("|---|---:|---:|---:|")
	for _, r := range rows() {
		m, c := median(mica, r.what), median(containerd, r.what)
		fmt.Printf("| %s | %.1f %s | %.1f %s | %.1f× |\n", r.what, m, r.unit, c, r.unit, c/m)
	}
}

func median(rounds []figures, what string) float64 {
	var values []float64
	for _, f := range rounds {
		values = append(values, f[what])
	}
	slices.Sort(values)
	return values[len(values)/2]
}
