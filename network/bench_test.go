package network

import (
	"context"
	"testing"
)

// These benchmarks mostly measure the plugins' executables.

func benchmarkAdd(b *testing.B, ports ...PortMapping) {
	n := newNode(b, nil)
	pod := newPod(b)
	pod.PortMappings = ports
	for b.Loop() {
		_, err := n.Add(context.Background(), pod)
		must(b, err)
		b.StopTimer()
		must(b, n.Del(context.Background(), pod))
		b.StartTimer()
	}
}

func benchmarkDel(b *testing.B, ports ...PortMapping) {
	n := newNode(b, nil)
	pod := newPod(b)
	pod.PortMappings = ports
	for b.Loop() {
		b.StopTimer()
		_, err := n.Add(context.Background(), pod)
		must(b, err)
		b.StartTimer()
		must(b, n.Del(context.Background(), pod))
	}
}

func BenchmarkAdd(b *testing.B) { benchmarkAdd(b) }
func BenchmarkDel(b *testing.B) { benchmarkDel(b) }

func BenchmarkAddHostPort(b *testing.B) {
	benchmarkAdd(b, PortMapping{HostPort: 8080, ContainerPort: 80})
}

func BenchmarkDelHostPort(b *testing.B) {
	benchmarkDel(b, PortMapping{HostPort: 8080, ContainerPort: 80})
}

func BenchmarkMasquerade(b *testing.B) {
	n := newNode(b, nil)
	for b.Loop() {
		must(b, n.Network.opts.Default.masquerade())
	}
}

func BenchmarkStats(b *testing.B) {
	n := newNode(b, nil)
	pod := newPod(b)
	n.add(pod)
	for b.Loop() {
		_, err := Stats(pod.NetNS)
		must(b, err)
	}
}
