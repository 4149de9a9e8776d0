package runtimeservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice/podns"
	"github.com/micarun/mica/runtimeservice/state"
)

// end makes a container look as it does when its exit is recorded.
func (m *measured) end(c *Container) {
	m.t.Helper()
	m.no(c.Update(func(st *state.ContainerState) error { st.Finished = time.Now(); return nil }))
}

func TestContainerStats(t *testing.T) {
	m := newMeasured(t)
	c := m.container(m.pod(nil), nil)
	resp, err := m.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID()})
	m.no(err)
	s := resp.GetStats()
	if s.GetAttributes().GetId() != c.ID() || s.GetAttributes().GetMetadata().GetName() != c.Config().GetMetadata().GetName() {
		t.Errorf("attributes are %v", s.GetAttributes())
	}
	if s.GetCpu().GetTimestamp() == 0 || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetUsageNanoCores().GetValue() == 0 {
		t.Errorf("cpu is %v", s.GetCpu())
	}
	if s.GetMemory().GetUsageBytes().GetValue() == 0 || s.GetMemory().GetTimestamp() == 0 {
		t.Errorf("memory is %v", s.GetMemory())
	}
	if w := s.GetWritableLayer(); w.GetUsedBytes().GetValue() < 64<<10 || w.GetInodesUsed().GetValue() < 2 || w.GetFsId().GetMountpoint() != m.opts.DataDir || w.GetTimestamp() == 0 {
		t.Errorf("writable layer is %v", w)
	}

	m.end(c)
	resp, err = m.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID()})
	m.no(err)
	if s := resp.GetStats(); s.GetCpu() != nil || s.GetMemory() != nil || s.GetWritableLayer().GetUsedBytes().GetValue() < 64<<10 {
		t.Errorf("an ended container uses %v, want its writable layer only", s)
	}
	if _, err := m.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "nobody"}); !errdefs.IsNotFound(err) {
		t.Errorf("stats of nobody: %v", err)
	}
}

func TestListContainerStats(t *testing.T) {
	m := newMeasured(t)
	p, q := m.pod(nil), m.pod(nil)
	web, db, other := m.container(p, map[string]string{"app": "web"}), m.container(p, map[string]string{"app": "db"}), m.container(q, map[string]string{"app": "web"})
	ended, vanished := m.container(p, nil), m.container(p, nil)
	m.end(ended)
	// The exit of this one is not recorded yet, but its cgroup has gone.
	m.no(m.cgroups.KillAll(t.Context(), m.containerCgroup(vanished)))
	m.no(m.cgroups.RemoveParent(t.Context(), m.containerCgroup(vanished)))

	tests := map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []*Container
	}{
		"all, the newest first": {nil, []*Container{other, db, web}},
		"by ID":                 {&runtimeapi.ContainerStatsFilter{Id: db.ID()[:20]}, []*Container{db}},
		"by pod":                {&runtimeapi.ContainerStatsFilter{PodSandboxId: q.ID()}, []*Container{other}},
		"by label":              {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "web"}}, []*Container{other, web}},
		"by all of them":        {&runtimeapi.ContainerStatsFilter{Id: web.ID(), PodSandboxId: q.ID()}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			resp, err := m.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: tt.filter})
			m.no(err)
			stream := &sentStream[runtimeapi.StreamContainerStatsResponse]{ctx: t.Context()}
			m.no(m.StreamContainerStats(&runtimeapi.StreamContainerStatsRequest{Filter: tt.filter}, stream))
			var streamed []*runtimeapi.ContainerStats
			for _, msg := range stream.messages {
				streamed = append(streamed, msg.GetContainerStats()...)
			}
			var want []string
			for _, c := range tt.want {
				want = append(want, c.ID())
			}
			for how, stats := range map[string][]*runtimeapi.ContainerStats{"list": resp.GetStats(), "stream": streamed} {
				var got []string
				for _, s := range stats {
					got = append(got, s.GetAttributes().GetId())
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s has %v, want %v", how, got, want)
				}
			}
		})
	}
}

// sentStream is the server's side of a streamed answer.
type sentStream[T any] struct {
	grpc.ServerStream
	ctx      context.Context
	messages []*T
}

func (s *sentStream[T]) Context() context.Context { return s.ctx }
func (s *sentStream[T]) Send(m *T) error          { s.messages = append(s.messages, m); return nil }

func TestPodStats(t *testing.T) {
	m := newMeasured(t)
	p, ended := m.pod(map[string]string{"app": "web"}), m.pod(nil)
	c := m.container(p, nil)
	m.container(p, nil)
	m.end(m.container(p, nil))
	m.no(ended.Update(func(st *state.PodState) error { st.Phase = state.PodNotReady; return nil }))

	resp, err := m.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID()})
	m.no(err)
	linux := resp.GetStats().GetLinux()
	if got := linux.GetProcess().GetProcessCount().GetValue(); got != 3 {
		t.Errorf("%d processes, want 3", got)
	}
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("pod uses %v", linux)
	}
	if got := linux.GetContainers(); len(got) != 2 || got[0].GetAttributes().GetId() != c.ID() {
		t.Errorf("stats of %d containers, want of the 2 that run", len(got))
	}
	if _, err := m.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: ended.ID()}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stats of an ended pod: %v", err)
	}
	for name, f := range map[string]*runtimeapi.PodSandboxStatsFilter{"all": nil, "ID": {Id: p.ID()[:20]}, "label": {LabelSelector: map[string]string{"app": "web"}}} {
		list, err := m.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
		m.no(err)
		if got := list.GetStats(); len(got) != 1 || got[0].GetAttributes().GetId() != p.ID() {
			t.Errorf("filter by %s has %d pods, want the ready one", name, len(got))
		}
		stream := &sentStream[runtimeapi.StreamPodSandboxStatsResponse]{ctx: t.Context()}
		m.no(m.StreamPodSandboxStats(&runtimeapi.StreamPodSandboxStatsRequest{Filter: f}, stream))
		if len(stream.messages) != 1 || len(stream.messages[0].GetPodSandboxStats()) != 1 {
			t.Errorf("filter by %s streams %v", name, stream.messages)
		}
	}
	none, err := m.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: ended.ID()}})
	if err != nil || len(none.GetStats()) != 0 {
		t.Errorf("stats of the ended pod: %v, %v", none, err)
	}
}

func TestPodMetrics(t *testing.T) {
	m := newMeasured(t)
	p := m.pod(nil)
	c := m.container(p, nil)
	m.end(m.container(p, nil))
	resp, err := m.ListPodSandboxMetrics(t.Context(), nil)
	m.no(err)
	if len(resp.GetPodMetrics()) != 1 || len(resp.GetPodMetrics()[0].GetContainerMetrics()) != 1 {
		t.Fatalf("metrics of pods and containers: %v, want one of each", resp)
	}
	container := resp.GetPodMetrics()[0].GetContainerMetrics()[0]
	wantLabels := []string{m.containerCgroup(c), c.ID(), c.image().GetImage(), c.Config().GetMetadata().GetName(), p.Metadata().GetName(), "test"}
	values := map[string]uint64{}
	for _, metric := range container.GetMetrics() {
		values[metric.GetName()] = metric.GetValue().GetValue()
		if got := metric.GetLabelValues()[:len(wantLabels)]; !slices.Equal(got, wantLabels) {
			t.Errorf("labels of %s are %v, want %v", metric.GetName(), got, wantLabels)
		}
	}
	for name, least := range map[string]uint64{
		"container_memory_usage_bytes": 4096, "container_processes": 1, "container_threads": 1, "container_file_descriptors": 3,
		"container_ulimits_soft": 1, "container_fs_usage_bytes": 64 << 10, "container_fs_limit_bytes": 1, "container_start_time_seconds": 1,
	} {
		if values[name] < least {
			t.Errorf("%s is %d, want at least %d", name, values[name], least)
		}
	}
	if values["container_processes"] != 1 {
		t.Errorf("container_processes is %d, want 1", values["container_processes"])
	}
	stream := &sentStream[runtimeapi.StreamPodSandboxMetricsResponse]{ctx: t.Context()}
	m.no(m.StreamPodSandboxMetrics(nil, stream))
	if len(stream.messages) != 1 || len(stream.messages[0].GetPodSandboxMetrics()) != 1 {
		t.Errorf("%d messages with metrics, want 1", len(stream.messages))
	}
}

func TestUpdatePodResources(t *testing.T) {
	m := newMeasured(t)
	own, lent := m.pod(nil), m.podWith(state.PodRecord{}, nil)
	m.container(own, nil) // makes the memory cgroup one that is in use
	read := func(p *Pod, v1, v2 string) string {
		for _, file := range []string{v1, v2} {
			data, err := os.ReadFile(filepath.Join(m.cgroups.MemoryDir(p.CgroupParent()), file))
			if err == nil {
				return string(data)
			}
		}
		return ""
	}
	for name, p := range map[string]*Pod{"own": own, "lent": lent} {
		swap := func() string { return read(p, "memory.memsw.limit_in_bytes", "memory.swap.max") }
		before := swap()
		_, err := m.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.ID(), Overhead: &criLimits{MemoryLimitInBytes: 16 << 20}, Resources: &criLimits{MemoryLimitInBytes: 64 << 20},
		})
		m.no(err)
		if got := p.State().Resources.Msg.GetMemoryLimitInBytes(); got != 64<<20 {
			t.Errorf("%s: noted memory limit is %d, want 64 MiB", name, got)
		}
		if got := p.State().Overhead.Msg.GetMemoryLimitInBytes(); got != 16<<20 {
			t.Errorf("%s: noted overhead is %d, want 16 MiB", name, got)
		}
		if got := read(p, "memory.limit_in_bytes", "memory.max"); got != "83886080\n" {
			t.Errorf("%s: memory limit of the cgroup is %q, want 80 MiB", name, got)
		}
		if got := swap(); got != before {
			t.Errorf("%s: limit of swap is %q, was %q", name, got, before)
		}
	}
	if _, err := m.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: own.ID(), Resources: &criLimits{MemoryLimitInBytes: -7}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("negative limit: %v", err)
	}
	m.no(own.Update(func(st *state.PodState) error { st.Phase = state.PodNotReady; return nil }))
	if _, err := m.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: own.ID()}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update of an ended pod: %v", err)
	}
}

// idle adds a running container without a process, which is made faster.
func (m *measured) idle(p *Pod) {
	m.t.Helper()
	rec := state.ContainerRecord{ID: newID(), PodID: p.ID(), Created: time.Now(), CgroupParent: p.CgroupParent()}
	rec.Config.Msg = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "idle"}, Image: &runtimeapi.ImageSpec{Image: "example.org/idle"}}
	_, err := m.layers.Create(m.t.Context(), overlay.CreateArgs{ID: rec.ID})
	m.no(err)
	m.t.Cleanup(func() { m.no(m.layers.Remove(context.Background(), rec.ID)) })
	_, err = m.cgroups.EnsureParent(m.t.Context(), m.cgroups.ContainerDir(rec.CgroupParent, rec.ID))
	m.no(err)
	m.no(m.containers.Add(recordedContainer(m.t, m.t.TempDir(), rec, state.ContainerState{Ready: true, Started: time.Now()})))
}

// BenchmarkListStats shows that the lists of usage take time in proportion to the pods.
func BenchmarkListStats(b *testing.B) {
	for _, pods := range []int{60, 500} {
		m := newMeasured(b)
		for range pods {
			m.idle(m.pod(nil))
		}
		for name, list := range map[string]func() (int, error){
			"containers": func() (int, error) {
				r, err := m.ListContainerStats(b.Context(), &runtimeapi.ListContainerStatsRequest{})
				return len(r.GetStats()), err
			},
			"pods": func() (int, error) {
				r, err := m.ListPodSandboxStats(b.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
				return len(r.GetStats()), err
			},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, pods), func(b *testing.B) {
				for b.Loop() {
					if found, err := list(); err != nil || found != pods {
						b.Fatal(found, err)
					}
				}
			})
		}
	}
}

// A pod whose interfaces cannot be read keeps the rest of its usage in every list.
func TestPodStatsWithoutInterfaces(t *testing.T) {
	m := newMeasured(t)
	p := m.pod(nil)
	m.no(podns.Unpin(m.paths.PodState(p.ID())))
	list, err := m.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	m.no(err)
	if len(list.GetStats()) != 1 {
		t.Fatalf("%d pods have usage", len(list.GetStats()))
	}
	if linux := list.GetStats()[0].GetLinux(); linux.GetMemory() == nil || len(linux.GetNetwork().GetInterfaces()) > 0 {
		t.Errorf("the usage is %v", linux)
	}
	metrics, err := m.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	m.no(err)
	if pods := metrics.GetPodMetrics(); len(pods) != 1 || len(pods[0].GetMetrics()) == 0 {
		t.Errorf("the metrics are %v", pods)
	}
}
