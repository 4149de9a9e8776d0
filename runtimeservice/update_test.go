package runtimeservice

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type criLimits = runtimeapi.LinuxContainerResources

func TestMergeResources(t *testing.T) {
	huge := func(size string, limit uint64) *runtimeapi.HugepageLimit {
		return &runtimeapi.HugepageLimit{PageSize: size, Limit: limit}
	}
	tests := map[string]struct{ old, change, want *criLimits }{
		"nothing known before": {nil, &criLimits{CpuShares: 5}, &criLimits{CpuShares: 5}},
		"nothing asked for":    {&criLimits{CpuShares: 5, OomScoreAdj: 3}, nil, &criLimits{CpuShares: 5, OomScoreAdj: 3}},
		"zero leaves as it is": {
			&criLimits{CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 4},
			&criLimits{CpuQuota: 20, CpusetCpus: "0-1"},
			&criLimits{CpuPeriod: 1, CpuQuota: 20, CpuShares: 3, CpusetCpus: "0-1", CpusetMems: "1", MemoryLimitInBytes: 4},
		},
		"another OOM score":              {&criLimits{OomScoreAdj: 3}, &criLimits{OomScoreAdj: -900}, &criLimits{OomScoreAdj: -900}},
		"quota taken away":               {&criLimits{CpuQuota: 2}, &criLimits{CpuQuota: -1}, &criLimits{CpuQuota: -1}},
		"no swap stays no swap":          {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &criLimits{MemoryLimitInBytes: 30}, &criLimits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 30}},
		"allowed swap stays":             {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &criLimits{MemoryLimitInBytes: 30}, &criLimits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 35}},
		"swap unlimited stays":           {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, &criLimits{MemoryLimitInBytes: 30}, &criLimits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: -1}},
		"memory unlimited, so both":      {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &criLimits{MemoryLimitInBytes: -1}, &criLimits{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"swap asked for":                 {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &criLimits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 60}, &criLimits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 60}},
		"huge pages by size":             {&criLimits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 2)}}, &criLimits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 9)}}, &criLimits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 9), huge("1GB", 2)}}},
		"unified by key":                 {&criLimits{Unified: map[string]string{"a.b": "1", "c.d": "2"}}, &criLimits{Unified: map[string]string{"a.b": "9"}}, &criLimits{Unified: map[string]string{"a.b": "9", "c.d": "2"}}},
		"unified where there was none":   {&criLimits{}, &criLimits{Unified: map[string]string{"a.b": "9"}}, &criLimits{Unified: map[string]string{"a.b": "9"}}},
		"swap limit alone, memory stays": {&criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &criLimits{MemorySwapLimitInBytes: 20}, &criLimits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 20}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var before proto.Message
			if tt.old != nil {
				before = proto.Clone(tt.old)
			}
			got := mergeResources(tt.old, tt.change)
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("merged resources (-want +got):\n%s", diff)
			}
			if before != nil && !proto.Equal(before, tt.old) {
				t.Errorf("the old resources were changed to %v", tt.old)
			}
		})
	}
}

func TestPodResources(t *testing.T) {
	tests := map[string]struct{ overhead, containers, want *criLimits }{
		"nothing": {nil, nil, &criLimits{}},
		"no overhead": {
			nil, &criLimits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7},
			&criLimits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7},
		},
		"added": {
			&criLimits{CpuShares: 10, CpuQuota: 1000, CpuPeriod: 10000, MemoryLimitInBytes: 3},
			&criLimits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7, MemorySwapLimitInBytes: 8},
			&criLimits{CpuShares: 110, CpuQuota: 6000, CpuPeriod: 10000, MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 11},
		},
		"quota of another period": {
			&criLimits{CpuQuota: 1000, CpuPeriod: 10000}, &criLimits{CpuQuota: 50000},
			&criLimits{CpuQuota: 60000},
		},
		"no limit stays none": {&criLimits{CpuQuota: 1000, MemoryLimitInBytes: 3, CpuShares: 2}, &criLimits{CpuQuota: -1}, &criLimits{CpuQuota: -1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, podResources(tt.overhead, tt.containers), protocmp.Transform()); diff != "" {
				t.Errorf("pod's resources (-want +got):\n%s", diff)
			}
		})
	}
}
