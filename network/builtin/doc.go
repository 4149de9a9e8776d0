// Package builtin implements the CNI plugins loopback, bridge (with host-local), and portmap by
// netlink and nftables, in the calling process. They take the same configuration, return the same
// result, and set up the same interfaces, addresses, routes and sysctls as the CNI project's
// executables.
//
// A configuration that needs anything else is not supported: [Supports] gives the reason, and the
// caller executes the plugins.
//
// Differences to the executables:
//
//   - DEL does not delete the pod's interface, because the kernel then waits for an RCU grace period.
//     It removes the addresses of its result, so that nothing in the namespace uses them any longer. The
//     interface goes with its namespace, or is deleted two seconds later. Before that, ADD replaces it.
//   - Host ports and masquerading (ipMasq) use nftables, one table per network and address family,
//     mica/<network>, instead of iptables chains per pod. A pod's host ports are elements of maps,
//     with the pod's ID as their comment. Masquerading is one rule for each range of addresses, for all
//     pods. It stays until [Plugins.RemoveNetwork].
//   - A host port that another pod has is an error. With iptables, the older pod keeps it silently.
//
// Invariants:
//
//   - Everything that ADD makes is found by container ID, network name and namespace alone, so DEL
//     works after an ADD that was interrupted anywhere.
//   - Calls for one container run one after the other, also if the caller stopped waiting for one.
//   - Tables of others are only read by the kernel's hooks, never changed.
//
// On disk, in the state directory: one empty file per network with a table, written before the
// table is made.
package builtin
