package stats

import (
	"cmp"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

// Metrics are the metrics of pods and containers. They have the names, label keys and types that
// cAdvisor gives them, so that dashboards for the kubelet's cAdvisor keep working. They are the
// ones that cAdvisor exposes on current kernels: CRI clients expect samples of every described
// metric. Values are whole numbers, because the CRI has no others: seconds are truncated. Where the
// host does not count something (huge pages, devices, pressure, swap), the metric has no samples.
//
// Metrics is immutable.
type Metrics struct{ families []family }

// NewMetrics returns all metrics.
func NewMetrics() Metrics {
	return Metrics{families: slices.Concat(lifeFamilies(), cpuFamilies(), memoryFamilies(), hugetlbFamilies(), limitFamilies(),
		pressureFamilies(), diskFamilies(), processFamilies(), networkFamilies())}
}

// Descriptors returns the description of every metric.
func (m Metrics) Descriptors() []*runtimeapi.MetricDescriptor {
	out := make([]*runtimeapi.MetricDescriptor, 0, len(m.families))
	for _, f := range m.families {
		out = append(out, &runtimeapi.MetricDescriptor{Name: f.name, Help: f.help, LabelKeys: append(labelKeys(), f.labels...)})
	}
	return out
}

// Samples returns the metrics for which r has values.
func (m Metrics) Samples(r *Reading, l Labels) []*runtimeapi.Metric {
	base := l.values()
	var out []*runtimeapi.Metric
	for _, f := range m.families {
		for _, v := range f.samples(r) {
			metric := &runtimeapi.Metric{
				Name: f.name, MetricType: f.kind,
				LabelValues: slices.Concat(base, v.labels), Value: value(v.value),
			}
			if !v.at.IsZero() {
				metric.Timestamp = v.at.UnixNano()
			}
			out = append(out, metric)
		}
	}
	return out
}

// Labels are the label values that every metric has, before its own.
type Labels struct {
	// Cgroup is the path of the cgroup, which is the label id.
	Cgroup string
	// Name is the ID of the container or, for the pod's network, of the pod.
	Name string
	// Image is the container's image.
	Image string
	// Container is the container's name, "" for the whole pod, "POD" for its network.
	Container string
	// Pod and Namespace are the pod's.
	Pod, Namespace string
}

// labelKeys returns the keys of Labels.
func labelKeys() []string { return []string{"id", "name", "image", "container", "pod", "namespace"} }

func (l Labels) values() []string {
	return []string{l.Cgroup, l.Name, l.Image, l.Container, l.Pod, l.Namespace}
}

// Reading is what was read of one container or pod. Parts that do not apply are nil; their metrics
// have no samples.
type Reading struct {
	Stats *cgroup.Stats
	// Limits are the requested limits. Zero values mean the defaults.
	Limits *runtimeapi.LinuxContainerResources
	// Created and Started are zero if unknown. Seen is the time of the reading.
	Created, Started, Seen time.Time
	// Leaf is set for a container, whose cgroup has no others below it.
	Leaf       bool
	Disk       *Disk
	Processes  *Processes
	Interfaces []network.InterfaceStats
}

// family is one metric: its description, and how its samples come from a reading.
type family struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // keys after labelKeys
	samples    func(r *Reading) []sample
}

// sample is one value of a family.
type sample struct {
	value  uint64
	labels []string  // values of the family's own keys
	at     time.Time // zero for values that were read just now
}

func counter(name, help string, samples func(*Reading) []sample, labels ...string) family {
	return family{name: name, help: help, kind: runtimeapi.MetricType_COUNTER, labels: labels, samples: samples}
}

func gauge(name, help string, samples func(*Reading) []sample, labels ...string) family {
	return family{name: name, help: help, kind: runtimeapi.MetricType_GAUGE, labels: labels, samples: samples}
}

func one(value uint64, labels ...string) []sample { return []sample{{value: value, labels: labels}} }

func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }

func lifeFamilies() []family {
	moment := func(t func(*Reading) time.Time) func(*Reading) []sample {
		return func(r *Reading) []sample {
			if at := t(r); !at.IsZero() {
				return one(uint64(at.Unix()))
			}
			return nil
		}
	}
	return []family{
		gauge("container_last_seen", "Unix time at which the container was read, in seconds.",
			moment(func(r *Reading) time.Time { return r.Seen })),
		gauge("container_creation_time_seconds", "Unix time at which the container was created.",
			moment(func(r *Reading) time.Time { return r.Created })),
		gauge("container_start_time_seconds", "Unix time at which the container was started, or created if it was not.",
			moment(func(r *Reading) time.Time { return cmp.Or(r.Started, r.Created) })),
	}
}
