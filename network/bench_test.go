package network

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/micarun/mica/runtimeservice/podns"
)

// bothWays runs a benchmark of the executables and of the built-in plugins, without and with a host
// port.
func bothWays(b *testing.B, f func(*testing.B, *node, Pod)) {
	for name, inProcess := range map[string]bool{"executed": false, "in process": true} {
		for ports, list := range map[string][]PortMapping{"plain": nil, "host port": {{HostPort: 8080, ContainerPort: 80}}} {
			b.Run(name+"/"+ports, func(b *testing.B) {
				n := newNode(b, func(o *Options) { o.InProcess = inProcess })
				pod := newPod(b)
				pod.PortMappings = list
				f(b, n, pod)
			})
		}
	}
}

// fresh pins a new network namespace for the pod, as every pod has.
func (p *Pod) fresh(b *testing.B) (dropped func()) {
	dir := filepath.Join(b.TempDir(), "fresh")
	must(b, podns.Pin(b.Context(), podns.Args{Dir: dir, Net: true}))
	p.NetNS = filepath.Join(dir, podns.Net)
	return func() { must(b, podns.Unpin(dir)) }
}

func BenchmarkAdd(b *testing.B) {
	bothWays(b, func(b *testing.B, n *node, pod Pod) {
		for b.Loop() {
			b.StopTimer()
			drop := pod.fresh(b)
			b.StartTimer()
			_, err := n.Add(context.Background(), pod)
			must(b, err)
			b.StopTimer()
			must(b, n.Del(context.Background(), pod))
			drop()
			b.StartTimer()
		}
	})
}

func BenchmarkDel(b *testing.B) {
	bothWays(b, func(b *testing.B, n *node, pod Pod) {
		for b.Loop() {
			b.StopTimer()
			drop := pod.fresh(b)
			_, err := n.Add(context.Background(), pod)
			must(b, err)
			b.StartTimer()
			must(b, n.Del(context.Background(), pod))
			b.StopTimer()
			drop()
			b.StartTimer()
		}
	})
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
