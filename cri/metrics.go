package cri

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

// metrics holds the endpoint's metrics. Their help texts document them.
type metrics struct {
	duration *prometheus.HistogramVec // by method; unary calls only
	calls    *prometheus.CounterVec   // by method and code
	running  *prometheus.GaugeVec     // by method
	sessions *prometheus.GaugeVec     // by kind: exec, attach, port-forward
	panics   prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mica_cri_call_duration_seconds",
			Help: "Time that a unary CRI call took, by method.",
			// From an empty list (0.1 ms) over pod starts to pulls (100 s).
			Buckets: []float64{.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 100},
		}, []string{"method"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mica_cri_calls_total",
			Help: "CRI calls that ended, by method and gRPC code.",
		}, []string{"method", "code"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mica_cri_calls_running",
			Help: "CRI calls in progress, by method.",
		}, []string{"method"}),
		sessions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mica_cri_sessions_running",
			Help: "Exec, attach and port-forward streams that are open, by kind.",
		}, []string{"kind"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mica_cri_panics_total",
			Help: "Calls and sessions that panicked and were answered with an internal error.",
		}),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.duration, m.calls, m.running, m.sessions, m.panics}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *metrics) observe(c *call, took time.Duration, err error) {
	m.calls.WithLabelValues(c.method, status.Code(err).String()).Inc()
	if !c.streaming {
		m.duration.WithLabelValues(c.method).Observe(took.Seconds())
	}
}
