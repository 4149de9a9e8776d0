// Package hostlocal assigns addresses to pods as the IPAM plugin host-local of the CNI project does,
// from the same configuration and with the same leases on disk. The plugin and this package can
// take turns on one network: each reads, continues and releases the leases of the other.
//
// On disk, in <dataDir>/<network>:
//
//	<address>              a lease: the container ID and, on a second line, the interface
//	last_reserved_ip.<n>   the address that was leased last from the n-th set of ranges
//	lock                   locked (flock) during every change
//
// Leases are not synced to stable storage. The package changes no interface and runs no process.
package hostlocal
