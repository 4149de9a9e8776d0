// Package network attaches pods to their network: it runs CNI plugins on a pod's network namespace,
// and runs them again to detach the pod. The plugins of package builtin run in this process, if it
// supports the configuration; others are executed.
//
// It uses the CNI configuration that an operator or a cluster add-on puts into the configuration
// directory. Without one it uses an embedded default network: a bridge with masquerading and host
// ports. It does not create network namespaces (runtimeservice/podns does), and does not handle
// resolver configuration, host names, services or network policies.
//
// Invariants:
//
//   - An attachment is recorded before its first plugin runs, with its whole configuration. The
//     record is enough to remove the attachment by the same plugins with the same arguments, whatever
//     happens in between: a failed or killed plugin, a crash, a restart, a changed configuration.
//   - A record is removed only after every plugin has confirmed its DEL.
//   - Operations on one pod run one after the other, those on different pods in parallel. Every
//     operation has a deadline, at which its plugins and all their children are killed.
//   - A restart of the daemon does not disturb attached pods: their state is on disk, and their
//     network is in the kernel.
//
// On disk, below Options.CacheDir:
//
//	attachments/<pod id>.json                 the record, written before ADD
//	results/<network>-<pod id>-<interface>    libcni's cache, written after ADD
//	tables/<network>                          a network that may have tables of built-in plugins
//	leases/<network>/<address>                leases of the default network, as the
//	                                          plugin host-local writes them
//
// In the kernel, beside the pods' own interfaces and rules, the default network keeps its bridge and
// the nftables tables mica-<network>, and built-in plugins the tables mica/<network>, until
// [Network.RemoveDefault]. Plugins leave some state behind
// by design: ip_forward stays on, and portmap's empty chains CNI-HOSTPORT-{DNAT,MASQ,SETMARK} stay
// with the rules that lead to them. Other runtimes on the node may share these, so Mica keeps them.
//
// Records are not synced to stable storage one by one. A power failure ends all network namespaces
// anyway, and [Network.GC] releases the leases of the default network by the lease files alone.
package network
