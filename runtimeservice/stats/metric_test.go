package stats

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

type limits = runtimeapi.LinuxContainerResources

// fullReading has every value, all different.
func fullReading() *Reading {
	pressure := func(some, full uint64) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.PressureLine{Total: some * 1e6}, Full: cgroup.PressureLine{Total: full * 1e6}}
	}
	swap, files := uint64(18), uint64(1024)
	return &Reading{
		Leaf: true, Seen: time.Unix(300, 0), Created: time.Unix(100, 0), Started: time.Unix(200, 0),
		Limits: &limits{CpuQuota: 5000, CpuShares: 2, MemoryLimitInBytes: 77, MemorySwapLimitInBytes: 78},
		Stats: &cgroup.Stats{
			CPU: cgroup.CPUStats{
				Usage: 4_900_000_000, User: 3_100_000_000, System: 1_800_000_000, Periods: 10, ThrottledPeriods: 5,
				ThrottledTime: 2_500_000_000, BurstPeriods: 6, BurstTime: 7_900_000_000, Pressure: pressure(11, 12),
			},
			Memory: &cgroup.MemoryStats{
				Usage: 20, WorkingSet: 21, MaxUsage: 22, RSS: 23, Cache: 24, MappedFile: 25, KernelUsage: 26,
				PageFaults: 27, MajorPageFaults: 28, SwapUsage: &swap, Failcnt: 29, OOMKills: 30, ActiveFile: 80, InactiveFile: 81, Dirty: 82, Writeback: 83, Pressure: pressure(31, 32),
			},
			Pids:       &cgroup.PidsStats{Current: 8, Limit: 40},
			Hugetlb:    []cgroup.HugetlbStats{{PageSize: "2MB", Usage: 41, MaxUsage: 42, Failcnt: 43}},
			IO:         []cgroup.IOStats{{Major: 9999, Minor: 1, ReadBytes: 5120, WriteBytes: 1024, DiscardBytes: 46, ReadOps: 47, WriteOps: 48}},
			IOPressure: pressure(33, 34),
		},
		Disk: &Disk{
			Filesystem: Filesystem{device: "/dev/vda", bytes: 50, inodes: 51, inodesFree: 52},
			Layer:      Layer{usage: overlay.Usage{Bytes: 53}, at: time.Unix(299, 0)},
		},
		Processes:  &Processes{processes: 60, threads: 61, descriptors: 62, sockets: 63, maxOpenFiles: &files},
		Interfaces: []network.InterfaceStats{{Name: "eth0", RxBytes: 70, RxPackets: 71, RxDropped: 72, RxErrors: 73, TxBytes: 74, TxPackets: 75, TxDropped: 76, TxErrors: 77}},
	}
}

// The names, own label values, types and values, as cAdvisor exposes them.
const wantMetrics = `
container_blkio_device_usage_total{9999:1,9999,1,Discard} counter 46
container_blkio_device_usage_total{9999:1,9999,1,Read} counter 5120
container_blkio_device_usage_total{9999:1,9999,1,Write} counter 1024
container_cpu_cfs_burst_periods_total{} counter 6
container_cpu_cfs_burst_seconds_total{} counter 7
container_cpu_cfs_periods_total{} counter 10
container_cpu_cfs_throttled_periods_total{} counter 5
container_cpu_cfs_throttled_seconds_total{} counter 2
container_cpu_system_seconds_total{} counter 1
container_cpu_usage_seconds_total{total} counter 4
container_cpu_user_seconds_total{} counter 3
container_creation_time_seconds{} gauge 100
container_file_descriptors{} gauge 62
container_fs_inodes_free{/dev/vda} gauge 52
container_fs_inodes_total{/dev/vda} gauge 51
container_fs_limit_bytes{/dev/vda} gauge 50
container_fs_reads_bytes_total{9999:1} counter 5120
container_fs_reads_total{9999:1} counter 47
container_fs_usage_bytes{/dev/vda} gauge 53
container_fs_writes_bytes_total{9999:1} counter 1024
container_fs_writes_total{9999:1} counter 48
container_hugetlb_max_usage_bytes{2MB} gauge 42
container_hugetlb_usage_bytes{2MB} gauge 41
container_last_seen{} gauge 300
container_memory_cache{} gauge 24
container_memory_failcnt{} counter 29
container_memory_failures_total{pgfault,container} counter 27
container_memory_failures_total{pgfault,hierarchy} counter 27
container_memory_failures_total{pgmajfault,container} counter 28
container_memory_failures_total{pgmajfault,hierarchy} counter 28
container_memory_file_dirty_bytes{} gauge 82
container_memory_file_writeback_bytes{} gauge 83
container_memory_kernel_usage{} gauge 26
container_memory_mapped_file{} gauge 25
container_memory_max_usage_bytes{} gauge 22
container_memory_rss{} gauge 23
container_memory_swap{} gauge 18
container_memory_total_active_file_bytes{} gauge 80
container_memory_total_inactive_file_bytes{} gauge 81
container_memory_usage_bytes{} gauge 20
container_memory_working_set_bytes{} gauge 21
container_network_receive_bytes_total{eth0} counter 70
container_network_receive_errors_total{eth0} counter 73
container_network_receive_packets_dropped_total{eth0} counter 72
container_network_receive_packets_total{eth0} counter 71
container_network_transmit_bytes_total{eth0} counter 74
container_network_transmit_errors_total{eth0} counter 77
container_network_transmit_packets_dropped_total{eth0} counter 76
container_network_transmit_packets_total{eth0} counter 75
container_oom_events_total{} counter 30
container_pressure_cpu_stalled_seconds_total{} counter 12
container_pressure_cpu_waiting_seconds_total{} counter 11
container_pressure_io_stalled_seconds_total{} counter 34
container_pressure_io_waiting_seconds_total{} counter 33
container_pressure_memory_stalled_seconds_total{} counter 32
container_pressure_memory_waiting_seconds_total{} counter 31
container_processes{} gauge 60
container_sockets{} gauge 63
container_spec_cpu_period{} gauge 100000
container_spec_cpu_quota{} gauge 5000
container_spec_cpu_shares{} gauge 2
container_spec_memory_limit_bytes{} gauge 77
container_spec_memory_reservation_limit_bytes{} gauge 0
container_spec_memory_swap_limit_bytes{} gauge 78
container_start_time_seconds{} gauge 200
container_threads{} gauge 61
container_threads_max{} gauge 40
container_ulimits_soft{max_open_files} gauge 1024
`

func lines(metrics []*runtimeapi.Metric) []string {
	var out []string
	for _, m := range metrics {
		own := strings.Join(m.GetLabelValues()[len(labelKeys()):], ",")
		out = append(out, m.GetName()+"{"+own+"} "+strings.ToLower(m.GetMetricType().String())+" "+strconv.FormatUint(m.GetValue().GetValue(), 10))
	}
	slices.Sort(out)
	return out
}

func TestMetrics(t *testing.T) {
	base := []string{"/cgroup", "id", "image", "container", "pod", "namespace"}
	metrics := NewMetrics().Samples(fullReading(), Labels{
		Cgroup: "/cgroup", Name: "id", Image: "image", Container: "container", Pod: "pod", Namespace: "namespace",
	})
	got, want := lines(metrics), strings.Split(strings.TrimSpace(wantMetrics), "\n")
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("unexpected %s", line)
		}
	}
	for _, m := range metrics {
		if !slices.Equal(m.GetLabelValues()[:len(base)], base) {
			t.Errorf("%s: labels %v do not begin with %v", m.GetName(), m.GetLabelValues(), base)
		}
		if cached := m.GetName() == "container_fs_usage_bytes"; cached != (m.GetTimestamp() != 0) {
			t.Errorf("%s: timestamp %d, want one for a value from the cache and 0 for the rest", m.GetName(), m.GetTimestamp())
		}
	}
}

// A client makes a Prometheus metric of each. A metric that does not fit its descriptor, or appears
// twice, makes the whole response unusable.
func TestMetricsFitTheirDescriptors(t *testing.T) {
	keys := map[string]int{}
	for _, d := range NewMetrics().Descriptors() {
		if _, double := keys[d.GetName()]; double || d.GetHelp() == "" {
			t.Errorf("descriptor %s: appears twice (%t) or has no help", d.GetName(), double)
		}
		keys[d.GetName()] = len(d.GetLabelKeys())
	}
	full := fullReading()
	full.Stats.IO = append(full.Stats.IO, cgroup.IOStats{Major: 9999, Minor: 2})
	seen := map[string]bool{}
	for _, m := range NewMetrics().Samples(full, Labels{}) {
		id := m.GetName() + strings.Join(m.GetLabelValues(), "\x00")
		if seen[id] {
			t.Errorf("%s%v appears twice", m.GetName(), m.GetLabelValues())
		}
		seen[id] = true
		if n, ok := keys[m.GetName()]; !ok || n != len(m.GetLabelValues()) {
			t.Errorf("%s: %d label values, descriptor has %d keys", m.GetName(), len(m.GetLabelValues()), n)
		}
	}
}

func TestMetricsOfPartialReadings(t *testing.T) {
	render := func(r *Reading) []string { return lines(NewMetrics().Samples(r, Labels{})) }
	if got := render(&Reading{}); len(got) != 0 {
		t.Errorf("metrics of nothing = %v", got)
	}
	for _, line := range render(&Reading{Interfaces: fullReading().Interfaces}) {
		if !strings.HasPrefix(line, "container_network_") {
			t.Errorf("metrics of a network have %s", line)
		}
	}
	// A pod's cgroup on a host without most controllers, and no limits.
	whole := render(&Reading{Stats: &cgroup.Stats{}, Created: time.Unix(100, 0), Limits: &limits{CpuQuota: -1, MemoryLimitInBytes: -1}})
	for _, line := range []string{"container_start_time_seconds{} gauge 100", "container_spec_memory_limit_bytes{} gauge 0", "container_spec_cpu_shares{} gauge 1024"} {
		if !slices.Contains(whole, line) {
			t.Errorf("metrics of a bare pod lack %s: %v", line, whole)
		}
	}
	for _, line := range whole {
		for _, absent := range []string{"memory_usage", "cfs", "quota", "hugetlb", "pressure", "threads", "container_fs"} {
			if strings.Contains(line, absent) {
				t.Errorf("metrics of a bare pod have %s", line)
			}
		}
	}
	pod := fullReading()
	pod.Leaf = false
	for _, line := range render(pod) {
		if strings.Contains(line, "pgfault,container") {
			t.Errorf("page faults of a pod alone are not counted, got %s", line)
		}
	}
}

func TestReadProcesses(t *testing.T) {
	before := ReadProcesses([]int{os.Getpid()}, os.Getpid())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := ReadProcesses([]int{os.Getpid(), 1 << 30}, os.Getpid())
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	switch {
	case got.sockets != before.sockets+1:
		t.Errorf("sockets = %d after one more, %d before", got.sockets, before.sockets)
	case got.descriptors <= before.sockets || got.descriptors < got.sockets:
		t.Errorf("descriptors = %d with %d sockets", got.descriptors, got.sockets)
	case got.threads < 2:
		t.Errorf("threads = %d, of a Go program", got.threads)
	case got.maxOpenFiles == nil || *got.maxOpenFiles != limit.Cur:
		t.Errorf("limit of open files = %v, want %d", got.maxOpenFiles, limit.Cur)
	}
	if gone := ReadProcesses(nil, 1<<30); gone.processes != 0 || gone.maxOpenFiles != nil {
		t.Errorf("reading of an ended container = %+v", gone)
	}
}

func TestReadFilesystem(t *testing.T) {
	fs, err := ReadFilesystem(t.TempDir())
	if err != nil || fs.device == "" || fs.bytes == 0 {
		t.Errorf("file system of a directory = %+v, %v", fs, err)
	}
	proc, err := ReadFilesystem("/proc/self")
	if err != nil || proc.device != "proc" {
		t.Errorf("device of /proc = %q, %v, want the nearest mount", proc.device, err)
	}
	if _, err := ReadFilesystem("/nowhere"); err == nil {
		t.Error("a missing directory has a file system")
	}
}

func TestDeviceName(t *testing.T) {
	if got := deviceName(cgroup.IOStats{Major: 9999, Minor: 3}); got != "9999:3" {
		t.Errorf("name of a removed device = %q, want its numbers", got)
	}
	entries, err := os.ReadDir("/sys/dev/block")
	if err != nil || len(entries) == 0 {
		t.Skip("no block device here")
	}
	var d cgroup.IOStats
	if _, err := fmt.Sscanf(entries[0].Name(), "%d:%d", &d.Major, &d.Minor); err != nil {
		t.Fatal(err)
	}
	if got := deviceName(d); !strings.HasPrefix(got, "/dev/") {
		t.Errorf("name of device %s = %q", entries[0].Name(), got)
	}
}
