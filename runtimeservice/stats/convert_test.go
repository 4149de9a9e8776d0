package stats

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/network"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

func TestConversions(t *testing.T) {
	pressure := func(n uint64) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.PressureLine{Avg10: 1, Avg60: 2, Avg300: 3, Total: n}, Full: cgroup.PressureLine{Total: n + 1}}
	}
	wantPSI := func(n uint64) *runtimeapi.PsiStats {
		return &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Avg10: 1, Avg60: 2, Avg300: 3, Total: n * 1000}, Full: &runtimeapi.PsiData{Total: (n + 1) * 1000}}
	}
	swap, swapLimit := uint64(30), uint64(100)
	v := value
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
	check("cpu", CPU(s, 3), &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: v(11), UsageNanoCores: v(3), Psi: wantPSI(10)})
	check("memory", Memory(s), &runtimeapi.MemoryUsage{
		Timestamp: at, UsageBytes: v(90), WorkingSetBytes: v(70), AvailableBytes: v(30), RssBytes: v(50), PageFaults: v(4), MajorPageFaults: v(2), Psi: wantPSI(20),
	})
	check("swap", Swap(s), &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: v(30), SwapAvailableBytes: v(70)})
	check("io", IO(s), &runtimeapi.IoUsage{Timestamp: at, Psi: wantPSI(30)})

	s.Memory.Limit, s.Memory.Pressure = 0, nil
	if m := Memory(s); m.AvailableBytes != nil || m.Psi != nil {
		t.Errorf("without a limit and PSI: %v", m)
	}
	s.Memory.Limit = 60
	check("above the limit", Memory(s).AvailableBytes, v(0))
	s.Memory.SwapUsage = nil
	check("no swap accounting", Swap(s), (*runtimeapi.SwapUsage)(nil))
	check("nothing counted", Memory(cgroup.Stats{}), (*runtimeapi.MemoryUsage)(nil))
	check("no pressure", IO(cgroup.Stats{}), (*runtimeapi.IoUsage)(nil))
}

func TestNetwork(t *testing.T) {
	got := Network(time.Unix(7, 0), []network.InterfaceStats{
		{Name: "net1", RxBytes: 1},
		{Name: "eth0", RxBytes: 2, RxErrors: 3, TxBytes: 4, TxErrors: 5},
	})
	v := value
	want := &runtimeapi.NetworkUsage{
		Timestamp:        time.Unix(7, 0).UnixNano(),
		DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: v(2), RxErrors: v(3), TxBytes: v(4), TxErrors: v(5)},
		Interfaces:       []*runtimeapi.NetworkInterfaceUsage{{Name: "net1", RxBytes: v(1), RxErrors: v(0), TxBytes: v(0), TxErrors: v(0)}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("network usage (-want +got):\n%s", diff)
	}
	for _, rest := range [][]network.InterfaceStats{nil, {{Name: "net1", RxBytes: 1}}} {
		if got := Network(time.Unix(7, 0), rest); got != nil {
			t.Errorf("network usage without the pod's interface: %v", got)
		}
	}
}
