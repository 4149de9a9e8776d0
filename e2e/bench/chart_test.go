package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	var s samples
	for _, ms := range []int{5, 1, 4, 2, 3} {
		s = append(s, time.Duration(ms)*time.Millisecond)
	}
	for quantile, want := range map[float64]float64{0: 1, 0.5: 3, 0.99: 4, 1: 5} {
		if got := s.at(quantile); got != want {
			t.Errorf("quantile %v = %v, want %v", quantile, got, want)
		}
	}
}

func TestRatio(t *testing.T) {
	for want, r := range map[string]row{
		"2.5×": {mica: 2, other: 5},
		"4.0×": {mica: 20, other: 5, more: true},
		"–":    {other: 5},
	} {
		if got := r.ratio(); got != want {
			t.Errorf("ratio of %+v = %s, want %s", r, got, want)
		}
	}
}

func exampleResult() result {
	return result{
		Peers:  [2]string{"Mica", "a < b"},
		Rows:   []resultRow{{"pod start", "ms", [2]float64{3, 6}}},
		Phases: []resultRow{{"RunPodSandbox", "ms", [2]float64{1, 2}}, {"StartContainer", "ms", [2]float64{2, 4}}},
		Memory: []memoryPoint{{5, [2]float64{10, 20}}, {50, [2]float64{11, 200}}},
	}
}

func TestResultIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if err := exampleResult().write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got result
	if err := json.Unmarshal(text, &got); err != nil || got.Rows[0].Values[1] != 6 || len(got.Memory) != 2 {
		t.Errorf("results.json: %v: %+v", err, got)
	}
	for _, name := range []string{"pod-start.svg", "memory.svg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = xml.Unmarshal(text, new(struct{}))
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The lengths of bars are proportional to the values.
func TestBars(t *testing.T) {
	text := exampleResult().phasesChart()
	var svg struct {
		Rects []struct {
			Width float64 `xml:"width,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(text), &svg); err != nil {
		t.Fatal(err)
	}
	bars := svg.Rects[1:5] // after the background
	for i, want := range []float64{1, 2, 2, 4} {
		if got := bars[i].Width / bars[0].Width; got < want*0.99 || got > want*1.01 {
			t.Errorf("bar %d is %.2f times as long as the first, want %v", i, got, want)
		}
	}
	if !strings.Contains(text, "a &lt; b") {
		t.Error("a name is not escaped")
	}
}
