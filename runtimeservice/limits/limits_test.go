package limits

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func of[T any](v T) *T { return &v }

func TestEarlierLimits(t *testing.T) {
	set := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: of[uint64](9), Quota: of[int64](9), Period: of[uint64](9), Cpus: "9"},
		Memory:         &specs.LinuxMemory{Limit: of[int64](9), Swap: of[int64](9)},
		Pids:           &specs.LinuxPids{Limit: of[int64](9)},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}, {Pagesize: "1GB", Limit: 9}},
		Unified:        map[string]string{"a.b": "9", "c.d": "9"},
	}
	old := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: of[uint64](1), Quota: of[int64](2), Period: of[uint64](3), Cpus: "0", Mems: "0"},
		Memory:         &specs.LinuxMemory{Limit: of[int64](4), Reservation: of[int64](5)},
		Pids:           &specs.LinuxPids{Limit: of[int64](6)},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 7}},
		Unified:        map[string]string{"a.b": "8", "x.y": "8"},
	}
	for name, tt := range map[string]struct{ old, set, want *specs.LinuxResources }{
		"nothing was set": {old, &specs.LinuxResources{}, &specs.LinuxResources{}},
		"all were there": {old, set, &specs.LinuxResources{
			CPU:            &specs.LinuxCPU{Shares: of[uint64](1), Quota: of[int64](2), Period: of[uint64](3), Cpus: "0"},
			Memory:         &specs.LinuxMemory{Limit: of[int64](4), Swap: of[int64](-1)},
			Pids:           &specs.LinuxPids{Limit: of[int64](6)},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 7}},
			Unified:        map[string]string{"a.b": "8"},
		}},
		"none was there": {nil, set, &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Shares: of[uint64](1024), Quota: of[int64](-1), Period: of[uint64](100_000)},
			Memory: &specs.LinuxMemory{Limit: of[int64](-1), Swap: of[int64](-1)},
			Pids:   &specs.LinuxPids{Limit: of[int64](-1)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Earlier(tt.old, tt.set)); diff != "" {
				t.Errorf("limits to restore (-want +got):\n%s", diff)
			}
		})
	}
}
