package main

import (
	"context"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/version"
)

// inventory counts the node's objects at each scrape. It is a prometheus.Collector.
type inventory struct {
	node *node

	pods       *prometheus.Desc
	containers *prometheus.Desc
	images     *prometheus.Desc
	unusable   *prometheus.Desc
	fetched    *prometheus.Desc
	build      *prometheus.Desc
}

func newInventory(n *node) *inventory {
	return &inventory{
		node:       n,
		pods:       prometheus.NewDesc("mica_pods", "Pods by state: ready or notready.", []string{"state"}, nil),
		containers: prometheus.NewDesc("mica_containers", "Containers by state: created, running or exited.", []string{"state"}, nil),
		images:     prometheus.NewDesc("mica_images", "Images.", nil, nil),
		unusable:   prometheus.NewDesc("mica_unusable_records", "Records of pods and containers that the start could not use.", nil, nil),
		fetched:    prometheus.NewDesc("mica_image_fetched_bytes_total", "Bytes of layers that registries have sent.", nil, nil),
		build:      prometheus.NewDesc("mica_build_info", "1, by the daemon's version.", []string{"version"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (i *inventory) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{i.pods, i.containers, i.images, i.unusable, i.fetched, i.build} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (i *inventory) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	// Scrapes have no context; both lists come from memory.
	ctx := context.Background()
	pods := map[string]int{"ready": 0, "notready": 0}
	if list, err := i.node.service.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err == nil {
		for _, p := range list.GetItems() {
			pods[strings.ToLower(strings.TrimPrefix(p.GetState().String(), "SANDBOX_"))]++
		}
	}
	containers := map[string]int{"created": 0, "running": 0, "exited": 0}
	if list, err := i.node.service.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err == nil {
		for _, c := range list.GetContainers() {
			containers[strings.ToLower(strings.TrimPrefix(c.GetState().String(), "CONTAINER_"))]++
		}
	}
	for state, count := range pods {
		gauge(i.pods, count, state)
	}
	for state, count := range containers {
		gauge(i.containers, count, state)
	}
	gauge(i.images, len(i.node.images.List()))
	gauge(i.unusable, i.node.service.UnusableRecords())
	gauge(i.build, 1, version.String())
	ch <- prometheus.MustNewConstMetric(i.fetched, prometheus.CounterValue, float64(i.node.images.Fetched()))
}
