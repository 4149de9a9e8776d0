// Package stats computes what the CRI reports about the use of pods and containers: CPU rates,
// usage messages and metrics.
//
// A [Sampler] remembers earlier readings of one pod or container, because a CPU rate needs two
// readings and because measuring a writable layer is expensive. The conversions ([CPU], [Memory],
// [Swap], [IO], [Network], [ProcessCount]) turn counters into CRI messages. [Metrics] does the same
// for the metrics that cAdvisor defines.
//
// The package does not know pods, containers or cgroup paths. The caller reads the counters,
// decides which pod or container they belong to, and converts errors. Only [ReadFilesystem],
// [ReadProcesses] and the names of block devices read the host, from /proc and /sys. Nothing is
// kept on disk.
package stats
