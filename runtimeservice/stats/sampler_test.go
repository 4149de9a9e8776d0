package stats

import (
	"errors"
	"testing"
	"time"

	"github.com/micarun/mica/overlay"
)

func TestRate(t *testing.T) {
	start := time.Unix(1000, 0)
	after := func(d time.Duration) time.Time { return start.Add(d) }
	const second = uint64(time.Second)
	type reading struct {
		at    time.Duration
		total uint64
		want  uint64
	}
	tests := map[string][]reading{
		"first is the mean since the start": {{10 * time.Second, 5 * second, second / 2}},
		"then since the one before":         {{10 * time.Second, 5 * second, second / 2}, {20 * time.Second, 25 * second, 2 * second}},
		"too soon gets the previous rate": {
			{10 * time.Second, 5 * second, second / 2},
			{10*time.Second + 1, 6 * second, second / 2},
			{20 * time.Second, 15 * second, second}, // over the whole 10 s
		},
		"a counter that was reset":  {{10 * time.Second, 5 * second, second / 2}, {20 * time.Second, 2 * second, second / 10}},
		"idle":                      {{10 * time.Second, 5 * second, second / 2}, {20 * time.Second, 5 * second, 0}},
		"a clock that was set back": {{-time.Second, 5 * second, 0}},
	}
	for name, readings := range tests {
		t.Run(name, func(t *testing.T) {
			var u Sampler
			for i, r := range readings {
				if got := u.Rate(after(r.at), r.total, start); got != r.want {
					t.Errorf("reading %d: rate = %d, want %d", i, got, r.want)
				}
			}
		})
	}
}

func TestLayerIsMeasuredSeldom(t *testing.T) {
	var u Sampler
	now := time.Unix(1000, 0)
	claim := func(at time.Time, want bool) Layer {
		t.Helper()
		got, measure := u.claimLayer(at)
		if measure != want {
			t.Fatalf("at %s: measure = %t, want %t", at.Sub(now), measure, want)
		}
		return got
	}
	claim(now, true)
	claim(now, true) // before the first measurement every caller measures
	u.setLayer(Layer{}, errors.New("unreadable"))
	claim(now, true)
	u.setLayer(Layer{at: now, usage: overlay.Usage{Bytes: 7}}, nil)
	if got := claim(now.Add(layerAge-1), false); got.usage.Bytes != 7 {
		t.Errorf("known usage = %d bytes, want 7", got.usage.Bytes)
	}
	claim(now.Add(layerAge), true)
	if got := claim(now.Add(layerAge), false); got.usage.Bytes != 7 {
		t.Errorf("while another measures: %d bytes, want the old 7", got.usage.Bytes)
	}
	slow := now.Add(layerAge)
	u.setLayer(Layer{at: slow, took: 3 * time.Second}, nil)
	claim(slow.Add(59*time.Second), false)
	claim(slow.Add(60*time.Second), true)
}
