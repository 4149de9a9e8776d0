package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// histograms has the samples of histograms in the metrics' text format, by their names with labels.
type histograms map[string]float64

// kubelet reads the kubelet's histograms.
func (b *bench) kubelet(ctx context.Context) (histograms, error) {
	var text string
	if err := b.Get(ctx, "/api/v1/nodes/"+b.node.Name+"/proxy/metrics", &text); err != nil {
		return nil, err
	}
	h := histograms{}
	for line := range strings.Lines(text) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		if err != nil {
			return nil, fmt.Errorf("read metrics of %s: %w", b.node.Name, err)
		}
		h[line[:at]] = value
	}
	return h, nil
}

// since returns the difference to earlier histograms.
func (h histograms) since(earlier histograms) histograms {
	added := maps.Clone(h)
	for name, value := range earlier {
		added[name] -= value
	}
	return added
}

// mean returns the mean of a histogram with labels, as the text format writes them.
func (h histograms) mean(name, labels string) float64 {
	if labels != "" {
		labels = "{" + labels + "}"
	}
	return h[name+"_sum"+labels] / h[name+"_count"+labels]
}

// operation returns the mean duration of the kubelet's calls of one kind, in milliseconds.
func (h histograms) operation(kind string) float64 {
	return 1000 * h.mean("kubelet_runtime_operations_duration_seconds", fmt.Sprintf("operation_type=%q", kind))
}

// quantile returns a quantile of a histogram without labels. It assumes that samples are evenly
// distributed in their bucket.
func (h histograms) quantile(name string, rank float64) float64 {
	label := regexp.MustCompile("^" + name + `_bucket\{le="(.*)"\}$`)
	buckets := map[float64]float64{}
	for sample, count := range h {
		if found := label.FindStringSubmatch(sample); found != nil {
			limit, err := strconv.ParseFloat(found[1], 64)
			if err == nil {
				buckets[limit] = count
			}
		}
	}
	wanted := rank * buckets[math.Inf(1)]
	var lower, below float64
	for _, limit := range slices.Sorted(maps.Keys(buckets)) {
		if count := buckets[limit]; count >= wanted && count > below {
			if math.IsInf(limit, 1) {
				return lower
			}
			return lower + (limit-lower)*(wanted-below)/(count-below)
		}
		lower, below = limit, buckets[limit]
	}
	return math.NaN()
}
