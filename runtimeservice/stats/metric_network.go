package stats

import (
	"github.com/micarun/mica/network"
)

func networkFamilies() []family {
	per := func(f func(network.InterfaceStats) uint64) func(*Reading) []sample {
		return func(r *Reading) []sample {
			var out []sample
			for _, i := range r.Interfaces {
				out = append(out, sample{value: f(i), labels: []string{i.Name}})
			}
			return out
		}
	}
	const key = "interface"
	return []family{
		counter("container_network_receive_bytes_total", "Bytes received.",
			per(func(i network.InterfaceStats) uint64 { return i.RxBytes }), key),
		counter("container_network_receive_packets_total", "Packets received.",
			per(func(i network.InterfaceStats) uint64 { return i.RxPackets }), key),
		counter("container_network_receive_packets_dropped_total", "Packets dropped on reception.",
			per(func(i network.InterfaceStats) uint64 { return i.RxDropped }), key),
		counter("container_network_receive_errors_total", "Errors on reception.",
			per(func(i network.InterfaceStats) uint64 { return i.RxErrors }), key),
		counter("container_network_transmit_bytes_total", "Bytes sent.",
			per(func(i network.InterfaceStats) uint64 { return i.TxBytes }), key),
		counter("container_network_transmit_packets_total", "Packets sent.",
			per(func(i network.InterfaceStats) uint64 { return i.TxPackets }), key),
		counter("container_network_transmit_packets_dropped_total", "Packets dropped on sending.",
			per(func(i network.InterfaceStats) uint64 { return i.TxDropped }), key),
		counter("container_network_transmit_errors_total", "Errors on sending.",
			per(func(i network.InterfaceStats) uint64 { return i.TxErrors }), key),
	}
}
