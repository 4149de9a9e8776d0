package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/cgroup"
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
		"too soon gets what is known": {
			{10 * time.Second, 5 * second, second / 2},
			{10*time.Second + 1, 6 * second, second / 2},
			{20 * time.Second, 15 * second, second}, // over the whole 10 s
		},
		"a counter that began anew": {{10 * time.Second, 5 * second, second / 2}, {20 * time.Second, 2 * second, second / 10}},
		"idle":                      {{10 * time.Second, 5 * second, second / 2}, {20 * time.Second, 5 * second, 0}},
		"a clock that went back":    {{-time.Second, 5 * second, 0}},
	}
	for name, readings := range tests {
		t.Run(name, func(t *testing.T) {
			var u usage
			for i, r := range readings {
				if got := u.rate(after(r.at), r.total, start); got != r.want {
					t.Errorf("reading %d: rate = %d, want %d", i, got, r.want)
				}
			}
		})
	}
}

func TestLayerIsMeasuredSeldom(t *testing.T) {
	var u usage
	now := time.Unix(1000, 0)
	claim := func(at time.Time, want bool) layerSample {
		t.Helper()
		got, measure := u.claimLayer(at)
		if measure != want {
			t.Fatalf("at %s: measure = %t, want %t", at.Sub(now), measure, want)
		}
		return got
	}
	claim(now, true)
	claim(now, true) // nobody can wait for a first measurement but by making it
	u.setLayer(layerSample{}, errors.New("unreadable"))
	claim(now, true)
	u.setLayer(layerSample{at: now, usage: overlay.Usage{Bytes: 7}}, nil)
	if got := claim(now.Add(layerAge-1), false); got.usage.Bytes != 7 {
		t.Errorf("known usage = %d bytes, want 7", got.usage.Bytes)
	}
	claim(now.Add(layerAge), true)
	if got := claim(now.Add(layerAge), false); got.usage.Bytes != 7 {
		t.Errorf("while another measures: %d bytes, want the old 7", got.usage.Bytes)
	}
	slow := now.Add(layerAge)
	u.setLayer(layerSample{at: slow, took: 3 * time.Second}, nil)
	claim(slow.Add(59*time.Second), false)
	claim(slow.Add(60*time.Second), true)
}

func TestUsageConversions(t *testing.T) {
	pressure := func(n uint64) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.PressureLine{Avg10: 1, Avg60: 2, Avg300: 3, Total: n}, Full: cgroup.PressureLine{Total: n + 1}}
	}
	wantPSI := func(n uint64) *runtimeapi.PsiStats {
		return &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Avg10: 1, Avg60: 2, Avg300: 3, Total: n * 1000}, Full: &runtimeapi.PsiData{Total: (n + 1) * 1000}}
	}
	swap, swapLimit := uint64(30), uint64(100)
	v := uint64Value
	s := cgroup.Stats{
		Time: time.Unix(5, 6),
		CPU:  cgroup.CPUStats{Usage: 11, Pressure: pressure(10)},
		Memory: &cgroup.MemoryStats{
			Usage: 90, WorkingSet: 70, Limit: 100, RSS: 50, PageFaults: 4, MajorPageFaults: 2,
			SwapUsage: &swap, SwapLimit: &swapLimit, Pressure: pressure(20),
		},
		IOPressure: pressure(30),
	}
	at := s.Time.UnixNano()
	check := func(name string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	check("cpu", cpuUsage(s, 3), &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: v(11), UsageNanoCores: v(3), Psi: wantPSI(10)})
	check("memory", memoryUsage(s), &runtimeapi.MemoryUsage{
		Timestamp: at, UsageBytes: v(90), WorkingSetBytes: v(70), AvailableBytes: v(30), RssBytes: v(50), PageFaults: v(4), MajorPageFaults: v(2), Psi: wantPSI(20),
	})
	check("swap", swapUsage(s), &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: v(30), SwapAvailableBytes: v(70)})
	check("io", ioUsage(s), &runtimeapi.IoUsage{Timestamp: at, Psi: wantPSI(30)})

	s.Memory.Limit, s.Memory.Pressure = 0, nil
	if m := memoryUsage(s); m.AvailableBytes != nil || m.Psi != nil {
		t.Errorf("without a limit and PSI: %v", m)
	}
	s.Memory.Limit = 60
	check("above the limit", memoryUsage(s).AvailableBytes, v(0))
	s.Memory.SwapUsage = nil
	check("no swap accounting", swapUsage(s), (*runtimeapi.SwapUsage)(nil))
	check("nothing counted", memoryUsage(cgroup.Stats{}), (*runtimeapi.MemoryUsage)(nil))
	check("no pressure", ioUsage(cgroup.Stats{}), (*runtimeapi.IoUsage)(nil))
}

func TestNetworkUsage(t *testing.T) {
	got := networkUsage(time.Unix(7, 0), []network.InterfaceStats{
		{Name: "net1", RxBytes: 1},
		{Name: "eth0", RxBytes: 2, RxErrors: 3, TxBytes: 4, TxErrors: 5},
	})
	v := uint64Value
	want := &runtimeapi.NetworkUsage{
		Timestamp:        time.Unix(7, 0).UnixNano(),
		DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: v(2), RxErrors: v(3), TxBytes: v(4), TxErrors: v(5)},
		Interfaces:       []*runtimeapi.NetworkInterfaceUsage{{Name: "net1", RxBytes: v(1), RxErrors: v(0), TxBytes: v(0), TxErrors: v(0)}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("network usage (-want +got):\n%s", diff)
	}
	for _, rest := range [][]network.InterfaceStats{nil, {{Name: "net1", RxBytes: 1}}} {
		if got := networkUsage(time.Unix(7, 0), rest); got != nil {
			t.Errorf("network usage without the pod's interface: %v", got)
		}
	}
}

func TestGather(t *testing.T) {
	var items []*Container
	for i := range 20 {
		items = append(items, &Container{ContainerRecord: ContainerRecord{ID: fmt.Sprint(i)}})
	}
	read := func(_ context.Context, c *Container) (string, error) {
		switch c.ID {
		case "3":
			return "", fmt.Errorf("ended: %w", errdefs.ErrNotFound)
		case "7":
			return "", errors.New("unreadable")
		}
		return c.ID, nil
	}
	got, err := gather(t.Context(), items, read)
	want := []string{"0", "1", "2", "4", "5", "6", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("gather = %v, %v, want %v", got, err, want)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := gather(ctx, items, read); !errors.Is(err, context.Canceled) {
		t.Errorf("gather after the caller's end = %v, %v", got, err)
	}
}

func TestChunkBySize(t *testing.T) {
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
			for chunk := range chunkBySize(items, 100) {
				got = append(got, len(chunk))
				all = append(all, chunk...)
			}
			if !slices.Equal(got, tt.want) || !slices.Equal(all, items) {
				t.Errorf("chunks of %v = %v with %d items, want %v with %d", tt.sizes, got, len(all), tt.want, len(items))
			}
			for range chunkBySize(items, 100) {
				break // a client that has gone
			}
		})
	}
}
