package chunks

import (
	"errors"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBySize(t *testing.T) {
	item := func(n int) *runtimeapi.ContainerStats {
		return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: string(make([]byte, n))}}
	}
	tests := map[string]struct {
		sizes []int
		want  []int // items of each chunk
	}{
		"none":                      {nil, nil},
		"all in one":                {[]int{10, 10, 10}, []int{3}},
		"by size":                   {[]int{60, 60, 10, 10}, []int{1, 3}},
		"one larger than a message": {[]int{10, 500, 10}, []int{1, 1, 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var items, all []*runtimeapi.ContainerStats
			for _, n := range tt.sizes {
				items = append(items, item(n))
			}
			var got []int
			for chunk := range bySize(items, 100) {
				got = append(got, len(chunk))
				all = append(all, chunk...)
			}
			if !slices.Equal(got, tt.want) || !slices.Equal(all, items) {
				t.Errorf("chunks of %v = %v with %d items, want %v with %d", tt.sizes, got, len(all), tt.want, len(items))
			}
			for range bySize(items, 100) {
				break // as after an error of send
			}
		})
	}
}

func TestSend(t *testing.T) {
	large := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: string(make([]byte, maxBytes))}}
	items := []*runtimeapi.ContainerStats{large, large, large}
	sent, broken := 0, errors.New("broken pipe")
	err := Send(items, func(chunk []*runtimeapi.ContainerStats) error {
		if sent += len(chunk); sent == 2 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || sent != 2 {
		t.Errorf("Send = %v after %d items, want the error of the second call", err, sent)
	}
	if err := Send(nil, func([]*runtimeapi.ContainerStats) error { return broken }); err != nil {
		t.Errorf("Send of nothing = %v", err)
	}
}
