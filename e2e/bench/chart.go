package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
)

// result is what a run has measured, in the form of results.json.
type result struct {
	Conditions string
	Peers      [2]string
	Rows       []resultRow
	// Phases are the medians of the calls of a pod start in ms, in their order.
	Phases []resultRow `json:",omitempty"`
	// Memory is the memory of each runtime in MiB at several numbers of pods.
	Memory []memoryPoint `json:",omitempty"`
}

type resultRow struct {
	What, Unit string
	Values     [2]float64 // of Peers
}

type memoryPoint struct {
	Pods   int
	Values [2]float64 // of Peers
}

// write writes results.json and the charts into a directory.
func (r result) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{"results.json": string(text) + "\n"}
	if len(r.Phases) > 0 {
		files["pod-start.svg"] = r.phasesChart()
	}
	if len(r.Memory) > 1 {
		files["memory.svg"] = r.memoryChart()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// chart is an SVG picture that is being drawn.
type chart struct{ strings.Builder }

// Sizes of a picture, and the edges of the plot in it.
const (
	chartWidth  = 720
	chartHeight = 240
	chartLeft   = 110
	chartRight  = 700
	chartTop    = 50
	chartBottom = 190
)

func newChart(title string) *chart {
	c := &chart{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", chartWidth, chartHeight)
	c.bar(0, 0, chartWidth, chartHeight, "white")
	c.text(chartLeft, 26, "start", title)
	return c
}

func (c *chart) text(x, y float64, anchor, text string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

func (c *chart) bar(x, y, width, height float64, color string) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, width, height, color)
}

func (c *chart) end() string {
	c.WriteString("</svg>\n")
	return c.String()
}

func color(n int) string {
	colors := []string{"#1f6f8b", "#e08e45", "#7a9e4e", "#8b5a9f", "#b04a4a"}
	return colors[n%len(colors)]
}

// phasesChart has a bar for each runtime, stacked from the calls of a pod start.
func (r result) phasesChart() string {
	c := newChart("Start of a pod, median of each call in ms")
	longest := 0.0
	for peer := range r.Peers {
		longest = max(longest, total(r.Phases, peer))
	}
	scale := (chartRight - chartLeft - 60) / longest
	for peer, name := range r.Peers {
		const height = 40
		x, y := float64(chartLeft), float64(chartTop+peer*(height+20))
		c.text(x-8, y+height/2+5, "end", name)
		for n, phase := range r.Phases {
			width := phase.Values[peer] * scale
			c.bar(x, y, width, height, color(n))
			x += width
		}
		c.text(x+6, y+height/2+5, "start", fmt.Sprintf("%.1f", total(r.Phases, peer)))
	}
	for n, phase := range r.Phases {
		x := float64(chartLeft + n*150)
		c.bar(x, chartBottom, 12, 12, color(n))
		c.text(x+18, chartBottom+11, "start", phase.What)
	}
	return c.end()
}

func total(rows []resultRow, peer int) (sum float64) {
	for _, r := range rows {
		sum += r.Values[peer]
	}
	return sum
}

// memoryChart has a line for each runtime: memory against the number of pods.
func (r result) memoryChart() string {
	c := newChart("Memory of the runtime's processes (PSS) in MiB, by running pods")
	most, pods := 0.0, 0
	for _, p := range r.Memory {
		most, pods = max(most, p.Values[0], p.Values[1]), max(pods, p.Pods)
	}
	x := func(p memoryPoint) float64 {
		return chartLeft + (chartRight-chartLeft-40)*float64(p.Pods)/float64(pods)
	}
	y := func(p memoryPoint, peer int) float64 { return chartBottom - (chartBottom-chartTop)*p.Values[peer]/most }
	fmt.Fprintf(c, `<path d="M%d %d V%d H%d" fill="none" stroke="#555"/>`+"\n", chartLeft, chartTop, chartBottom, chartRight)
	c.text(chartLeft-8, chartTop+5, "end", fmt.Sprintf("%.0f", most))
	c.text(chartLeft-8, chartBottom+5, "end", "0")
	for _, p := range r.Memory {
		c.text(x(p), chartBottom+18, "middle", fmt.Sprint(p.Pods))
	}
	for peer, name := range r.Peers {
		var points []string
		for _, p := range r.Memory {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(p), y(p, peer)))
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), color(peer))
		last := r.Memory[len(r.Memory)-1]
		c.text(x(last), y(last, peer)-6, "end", fmt.Sprintf("%s %.0f", name, last.Values[peer]))
	}
	return c.end()
}
