// Package cluster runs a Kubernetes cluster on Mica: etcd, the control plane
// and nodes of kubelet, kube-proxy and micad, all of them the real programs.
//
// A node is a pair of namespaces, for network and mounts, that a sleeping
// process keeps. Nothing of it reaches the machine's own network, and what a
// kubelet changes for a whole machine (sysctls, links in /var/log) it changes
// for its node only. The first node also has the control plane. Nodes are
// joined by a bridge in the first one's namespace, and reach each other's pods
// by static routes.
//
// The package is a module of its own, so that the product depends on nothing
// of Kubernetes but its protocols. The Kubernetes programs are built from the
// module in kubernetes/, whose go.mod says which versions: these two cannot be
// one, as the product is a release of the protocols ahead.
//
// On-disk form, for a cluster NAME: /run/NAME has nodes.json, the processes that
// keep the namespaces, and a state directory for each node; /var/lib/NAME has
// certificates, logs, etcd's data and a directory for each node. Both
// disappear when the cluster is taken down. A cluster outlives the process that
// started it, and Open finds it again.
package cluster
