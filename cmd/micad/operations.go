package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/micarun/mica/internal/operations"
)

// operationMetrics counts and times the operations. It is an operations.Observer and a
// prometheus.Collector.
type operationMetrics struct {
	duration *prometheus.HistogramVec // by operation
	stages   *prometheus.HistogramVec // by operation and stage
	failures *prometheus.CounterVec   // by operation and the stage that failed
	running  *prometheus.GaugeVec     // by operation
}

func newOperationMetrics() *operationMetrics {
	// The buckets range from operations in memory (1 ms) over pod starts to pulls and timeouts (5
	// min).
	buckets := []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 100, 300}
	return &operationMetrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mica_operation_duration_seconds",
			Help:    "Time that operations on pods, containers and images took, by operation.",
			Buckets: buckets,
		}, []string{"operation"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mica_stage_duration_seconds",
			Help:    "Time that the stages of operations took, by operation and stage.",
			Buckets: buckets,
		}, []string{"operation", "stage"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mica_operation_failures_total",
			Help: "Operations that failed, by operation and the stage that failed.",
		}, []string{"operation", "stage"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mica_operations_running",
			Help: "Operations in progress, whether or not a caller still waits, by operation.",
		}, []string{"operation"}),
	}
}

// Begin implements operations.Observer.
func (m *operationMetrics) Begin(ctx context.Context, what string, _ operations.Subject) context.Context {
	m.running.WithLabelValues(what).Inc()
	return ctx
}

// End implements operations.Observer.
func (m *operationMetrics) End(_ context.Context, e operations.Entry) {
	m.running.WithLabelValues(e.What).Dec()
	m.duration.WithLabelValues(e.What).Observe(e.Took.Seconds())
	last := ""
	for _, s := range e.Stages {
		m.stages.WithLabelValues(e.What, s.Name).Observe(s.Took.Seconds())
		last = s.Name
	}
	if e.Err != nil {
		m.failures.WithLabelValues(e.What, last).Inc()
	}
}

func (m *operationMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.duration, m.stages, m.failures, m.running}
}

// Describe implements prometheus.Collector.
func (m *operationMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *operationMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}
