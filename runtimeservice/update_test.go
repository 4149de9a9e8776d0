package runtimeservice

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type limits = runtimeapi.LinuxContainerResources

func TestMergeResources(t *testing.T) {
	huge := func(size string, limit uint64) *runtimeapi.HugepageLimit {
		return &runtimeapi.HugepageLimit{PageSize: size, Limit: limit}
	}
	tests := map[string]struct{ old, change, want *limits }{
		"nothing known before": {nil, &limits{CpuShares: 5}, &limits{CpuShares: 5}},
		"nothing asked for":    {&limits{CpuShares: 5, OomScoreAdj: 3}, nil, &limits{CpuShares: 5, OomScoreAdj: 3}},
		"zero leaves as it is": {
			&limits{CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 4},
			&limits{CpuQuota: 20, CpusetCpus: "0-1"},
			&limits{CpuPeriod: 1, CpuQuota: 20, CpuShares: 3, CpusetCpus: "0-1", CpusetMems: "1", MemoryLimitInBytes: 4},
		},
		"another OOM score":              {&limits{OomScoreAdj: 3}, &limits{OomScoreAdj: -900}, &limits{OomScoreAdj: -900}},
		"quota taken away":               {&limits{CpuQuota: 2}, &limits{CpuQuota: -1}, &limits{CpuQuota: -1}},
		"no swap stays no swap":          {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &limits{MemoryLimitInBytes: 30}, &limits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 30}},
		"allowed swap stays":             {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &limits{MemoryLimitInBytes: 30}, &limits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 35}},
		"swap unlimited stays":           {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, &limits{MemoryLimitInBytes: 30}, &limits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: -1}},
		"memory unlimited, so both":      {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 15}, &limits{MemoryLimitInBytes: -1}, &limits{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"swap asked for":                 {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &limits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 60}, &limits{MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 60}},
		"huge pages by size":             {&limits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 2)}}, &limits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 9)}}, &limits{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 9), huge("1GB", 2)}}},
		"unified by key":                 {&limits{Unified: map[string]string{"a.b": "1", "c.d": "2"}}, &limits{Unified: map[string]string{"a.b": "9"}}, &limits{Unified: map[string]string{"a.b": "9", "c.d": "2"}}},
		"unified where there was none":   {&limits{}, &limits{Unified: map[string]string{"a.b": "9"}}, &limits{Unified: map[string]string{"a.b": "9"}}},
		"swap limit alone, memory stays": {&limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &limits{MemorySwapLimitInBytes: 20}, &limits{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 20}},
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
	tests := map[string]struct{ overhead, containers, want *limits }{
		"nothing": {nil, nil, &limits{}},
		"no overhead": {
			nil, &limits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7},
			&limits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7},
		},
		"added": {
			&limits{CpuShares: 10, CpuQuota: 1000, CpuPeriod: 10000, MemoryLimitInBytes: 3},
			&limits{CpuShares: 100, CpuQuota: 5000, CpuPeriod: 10000, MemoryLimitInBytes: 7, MemorySwapLimitInBytes: 8},
			&limits{CpuShares: 110, CpuQuota: 6000, CpuPeriod: 10000, MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 11},
		},
		"quota of another period": {
			&limits{CpuQuota: 1000, CpuPeriod: 10000}, &limits{CpuQuota: 50000},
			&limits{CpuQuota: 60000},
		},
		"no limit stays none": {&limits{CpuQuota: 1000, MemoryLimitInBytes: 3, CpuShares: 2}, &limits{CpuQuota: -1}, &limits{CpuQuota: -1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, podResources(tt.overhead, tt.containers), protocmp.Transform()); diff != "" {
				t.Errorf("pod's resources (-want +got):\n%s", diff)
			}
		})
	}
}
