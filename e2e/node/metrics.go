package node

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Metric returns the value of one of the daemon's metrics: a name, with labels as the text format
// writes them.
func (n *Node) Metric(ctx context.Context, name string) (float64, error) {
	lines, err := n.MetricLines(ctx)
	if err != nil {
		return 0, err
	}
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("read metrics: no %s", name)
}

// MetricLines returns the lines of the daemon's metrics.
func (n *Node) MetricLines(ctx context.Context) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Metrics+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	// No connection may remain open: it would be counted as a leak of the daemon.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: n.Dial}}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close()
	var all []string
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		all = append(all, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return all, nil
}

// goroutines returns the number of the daemon's goroutines. It returns the median of several
// answers: the goroutines that collect the metrics are counted too, and their number varies by two.
func (n *Node) goroutines(ctx context.Context) (int, error) {
	var counts [5]float64
	for i := range counts {
		var err error
		if counts[i], err = n.Metric(ctx, "go_goroutines"); err != nil {
			return 0, err
		}
	}
	slices.Sort(counts[:])
	return int(counts[len(counts)/2]), nil
}
