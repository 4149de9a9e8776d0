// Package network gives every pod its network: it wires the pod's network
// namespace by CNI plugins, and takes the wiring away again.
//
// It uses the configuration that an operator or a cluster add-on puts into the
// configuration directory, and, where there is none, an embedded default
// network: a bridge with masquerading and host ports. It does not make network
// namespaces (runtimeservice/podns does), and a pod's resolver configuration and
// host names are not its business, nor are services or policies.
//
// Invariants:
//
//   - An attachment is recorded before the first plugin runs, with the whole
//     configuration that it is made by. Whatever happens afterwards (a failed or
//     killed plugin, a crash, a restart, another configuration), the record is
//     enough to take it away by the same plugins with the same arguments.
//   - A record goes only when every plugin has confirmed.
//   - Operations on one pod run one after the other, those on different pods in
//     parallel. Every operation has a deadline; at its end the plugins and all
//     their children are killed.
//   - Nothing of this package is in the pod's way after a restart: the state is
//     on disk, the network in the kernel.
//
// On disk, below Options.CacheDir:
//
//	attachments/<pod id>.json                 the record, written before ADD
//	results/<network>-<pod id>-<interface>    libcni's cache, written after ADD
//	leases/<network>/<address>                leases of the default network, as the
//	                                          plugin host-local writes them
//
// In the kernel, beside the pods' own wiring: the default network keeps its bridge
// and the nftables tables mica-<network> until [Network.RemoveDefault]. Plugins
// leave behind, by their design, ip_forward switched on and the empty chains
// CNI-HOSTPORT-{DNAT,MASQ,SETMARK} of portmap with the rules that lead into them;
// they are shared with other runtimes of the node and stay.
//
// The records are not synced to stable storage one by one: after a power cut the
// network namespaces are gone anyhow, and [Network.GC] gives back the leases of
// the default network by the lease files alone.
package network
